"""Give a checkpoint a memory of normal patches, and with it the `memory` score. Nothing is trained.

    anoseg memory model_final.pth --images photos/ --output with_memory.pth
    anoseg memory hf://tue-mps/cityscapes_semantic_eomt_large_1024 \\
        --dataset cityscapes_19_train --output with_memory.pth

The checkpoint may be one of ours, of EoMT's authors or of transformers; the output is one of ours,
with adapters merged. --images takes photographs that show nothing unknown; --dataset takes a
registered dataset, and its labels leave out void and unknown patches. One image in ten stays out
of the memory: the mean and spread of the score on these put it on one scale with other scores in
ensembles such as `anomaly+memory`.
"""

import argparse
from pathlib import Path

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS
from anoseg_d2.utils import cli
from anoseg_d2.utils.folders import walk_files
from anoseg_d2.utils.ranges import integer

OPTIONS = {"--rows": integer(1, 10**9), "--seed": integer(0, 2**63 - 1)}


def build_parser() -> argparse.ArgumentParser:
    parser = cli.build_parser(__doc__, imports=True)
    add = parser.add_argument
    add("weights", help="checkpoint: file, folder or hf://owner/name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", nargs="+", metavar="DIR", help="folders of normal photographs")
    source.add_argument("--dataset", metavar="NAME", help="registered dataset")
    add("--output", required=True, help="checkpoint to write, .pth or .safetensors")
    add("--rows", type=int, default=8000, help="patches to keep (default: %(default)s)")
    add(
        "--coreset",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="spread the rows over all that the photographs show (greedy k-center, the default), "
        "or draw them at random",
    )
    add("--seed", type=int, default=0, help="of the choice of patches (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing output")
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys and values, last",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = build_parser().parse_args(arguments)
    return cli.run_command(lambda: run(args), "stopped; nothing was written", args.verbosity)


def run(args: argparse.Namespace) -> None:
    cli.check_options(args, OPTIONS)
    cli.import_modules(args.imports)
    # Fitting takes minutes, so an output that cannot be written is refused before.
    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists; remove it or pass --overwrite")
    if output.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"--output {output} must end in .pth or .safetensors")
    # What needs no torch comes first, so that its mistakes are answered at once.
    records = None if args.dataset else find_photographs(args.images)

    from anoseg_d2.checkpoint import save_weights
    from anoseg_d2.engine.fit_memory import add_memory, labelled_records
    from anoseg_d2.modeling.inference import score_map_settings
    from anoseg_d2.prediction.predictor import AnomalyPredictor

    records = records or labelled_records(args.dataset)
    predictor = AnomalyPredictor.from_pretrained(args.weights, args.opts)
    model, settings = predictor.model, score_map_settings(predictor.cfg, filters=False)
    found = add_memory(model, records, args.rows, args.seed, args.coreset, settings)
    save_weights(model, output)
    cli.say(f"wrote {output}: {found}")


def find_photographs(folders: list[str]) -> list[tuple]:
    """Return (path, None), as `add_memory` takes images without labels."""
    records = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"--images {folder} is not a folder")
        records += [(path, None) for path in walk_files(folder, IMAGE_EXTENSIONS, depth=0)]
    if not records:
        raise FileNotFoundError(f"no image in {', '.join(folders)}")
    return records
