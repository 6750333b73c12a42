"""Training and evaluation on detectron2's trainer.

- `run`, `argument_parser`: the road of `train_net` and `anoseg train`, for a `Trainer` of one's
  own as well.
- `Trainer`: detectron2's `DefaultTrainer` with this project's loaders, optimiser and evaluators.
- `check_inputs`: finds every dataset and the weights before anything long starts.
- `load_evaluated`: loads the weights that `--eval-only` evaluates.
- `claim_output_dir`: makes OUTPUT_DIR ready for a run, and keeps runs apart.
- `launch_ranks`: starts a job on one process or many, and ends it as one.
- `StepTrainer`: one optimiser step with micro-batches and mixed precision.
- `build_optimizer`, `build_scheduler`: AdamW per block, and EoMT's two-stage warm-up.
- `set_up_run`: the log of a run, its seed and config.yaml.
- `measure_ensembles`: measures the statistics that ensembles of scores need.
"""

# This module is light. Its function has its name, and takes its place as an attribute from here on.
from anoseg_d2.engine.run import argument_parser, load_evaluated, run
from anoseg_d2.utils.index import lazy_index

# Resolved on first use, so that `anoseg train --help` answers before torch is loaded.
__all__, __getattr__, __dir__ = lazy_index(
    __name__,
    {
        "trainer": ["Trainer"],
        "preflight": ["check_inputs"],
        "output_dir": ["claim_output_dir"],
        "launch": ["launch_ranks"],
        "step": ["StepTrainer"],
        "solver": ["build_optimizer", "build_scheduler"],
        "run_log": ["set_up_run"],
        "evaluate": ["measure_ensembles"],
    },
)
__all__ += ["argument_parser", "load_evaluated", "run"]
