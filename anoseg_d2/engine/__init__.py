"""Training and evaluation on detectron2's trainer.

- `Trainer`: detectron2's `DefaultTrainer` with this project's loaders, optimiser and evaluators.
- `check_inputs`: finds every dataset and the weights before anything long starts.
- `load_evaluated`: loads the weights that `--eval-only` evaluates.
- `UnfinishedEvaluation`: which datasets an evaluation that was stopped has finished.
- `claim_output_dir`: holds OUTPUT_DIR for one run.
- `launch_ranks`: starts a job on one process or many, and ends it as one.
- `is_torchrun`: whether torchrun started this process.
- `StepTrainer`: one optimiser step with micro-batches and mixed precision.
- `build_optimizer`, `build_scheduler`: AdamW per block, and EoMT's two-stage warm-up.
- `set_up_run`: the log of a run, its seed and config.yaml.
- `measure_ensembles`: measures the statistics that ensembles of scores need.
"""

from anoseg_d2.engine.evaluate import measure_ensembles
from anoseg_d2.engine.launch import is_torchrun, launch_ranks
from anoseg_d2.engine.output_dir import claim_output_dir
from anoseg_d2.engine.run_log import set_up_run
from anoseg_d2.engine.solver import build_optimizer, build_scheduler
from anoseg_d2.engine.step import StepTrainer
from anoseg_d2.engine.trainer import Trainer, check_inputs, load_evaluated
from anoseg_d2.engine.unfinished import UnfinishedEvaluation

__all__ = [
    "StepTrainer",
    "Trainer",
    "UnfinishedEvaluation",
    "build_optimizer",
    "build_scheduler",
    "check_inputs",
    "claim_output_dir",
    "is_torchrun",
    "launch_ranks",
    "load_evaluated",
    "measure_ensembles",
    "set_up_run",
]
