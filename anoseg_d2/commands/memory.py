"""Give a checkpoint a memory of normal patches, and with it the `memory` score. Nothing is trained.

    anoseg memory dinov2-s --images photos/ --output mine.pth
    anoseg memory model_final.pth --images photos/ --output with_memory.pth
    anoseg memory hf://tue-mps/cityscapes_semantic_eomt_large_1024 \\
        --dataset cityscapes_19_train --output with_memory.pth

The checkpoint may be one of ours, of EoMT's authors or of transformers, or a bare DINOv2 or DINOv3
ViT; `dinov2-s` downloads one, once (44 MB; 88 MB are kept in ~/.cache). The output is one of ours;
of a bare ViT it gives the score `memory` and no classes. --images takes
photographs that show nothing unknown; --dataset takes a registered dataset, and its labels leave
out void and unknown patches. One image in ten stays out of the memory: the mean and spread of the
score on these put it on one scale with other scores in ensembles such as `anomaly+memory`.
"""

import argparse
from pathlib import Path

from anoseg_d2.data.image_io import IMAGE_EXTENSIONS
from anoseg_d2.utils import cli
from anoseg_d2.utils.folders import walk_files
from anoseg_d2.utils.ranges import integer

OPTIONS = {
    "--rows": integer(1, 10**9),
    "--seed": integer(0, 2**63 - 1),
    "--blocks": integer(1, 1000),
    "--window": integer(1, 10_000),
}
WINDOW = 392  # of a bare ViT: few windows, and objects of a few patches


def build_parser() -> argparse.ArgumentParser:
    parser = cli.build_parser(__doc__, imports=True)
    add = parser.add_argument
    add("weights", help="checkpoint: file, folder or hf://owner/name, or dinov2-s")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", nargs="+", metavar="DIR", help="folders of normal photographs")
    source.add_argument("--dataset", metavar="NAME", help="registered dataset")
    add("--output", required=True, help="checkpoint to write, .pth or .safetensors")
    add(
        "--rows",
        type=int,
        help="patches to keep (default: 8000; of several blocks of a network 2000)",
    )
    add(
        "--coreset",
        action=argparse.BooleanOptionalAction,
        help="spread the rows over all that the photographs show (greedy k-center), or draw them "
        "at random; default: spread for one block, drawn for several",
    )
    add(
        "--blocks",
        type=int,
        nargs="+",
        metavar="N",
        help="ViT blocks whose tokens are remembered, counted from 1; several are standardised and "
        "averaged. Those that queries enter run a second time, without queries and adapters. "
        "Default: 6 9 12 of 12, and the same fractions of other depths",
    )
    add(
        "--window",
        type=int,
        metavar="PIXELS",
        help="side of the windows, to which short sides of images are resized. Default: the "
        "checkpoint's; for a bare ViT 392, or the next multiple of its patch",
    )
    add("--seed", type=int, default=0, help="of the choice of patches (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing output")
    cli.add_config_options(parser)
    return parser


@cli.command(build_parser, OPTIONS, "stopped; nothing was written")
def main(args: argparse.Namespace) -> None:
    """Fit the memory, and write the checkpoint with it."""
    # Fitting takes minutes, so an output that cannot be written is refused before.
    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists; remove it or pass --overwrite")
    if output.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"--output {output} must end in .pth or .safetensors")
    # What needs no torch comes first, so that its mistakes are answered at once.
    records = None if args.dataset else find_photographs(args.images)

    from anoseg_d2.checkpoint import read_checkpoint, save_weights
    from anoseg_d2.checkpoint.files import write_checkpoint
    from anoseg_d2.checkpoint.metadata import with_memory
    from anoseg_d2.engine.fit_memory import add_memory, labelled_records
    from anoseg_d2.modeling.inference import score_map_settings
    from anoseg_d2.prediction.predictor import AnomalyPredictor

    records = records or labelled_records(args.dataset)
    checkpoint = read_checkpoint(args.weights)
    window, overrides = args.window, []
    if checkpoint.spec.num_queries is None and not checkpoint.spec.architecture:
        overrides = ["MODEL.META_ARCHITECTURE", "PatchModel"]
        patch = checkpoint.spec.patch_size or 1
        window = window or -(-WINDOW // patch) * patch
    if window:
        overrides += ["INPUT.CROP_SIZE", (window, window)]
    predictor = AnomalyPredictor.from_pretrained(checkpoint, [*overrides, *args.opts])
    model, settings = predictor.model, score_map_settings(predictor.cfg, filters=False)
    blocks = [block - 1 for block in args.blocks or ()]
    chosen = args.rows, args.seed, args.coreset, settings, blocks, checkpoint.state_dict
    found = add_memory(model, records, *chosen)
    if checkpoint.spec.adapters and not overrides and set(args.opts[::2]) <= {"MODEL.DEVICE"}:
        write_checkpoint(with_memory(checkpoint, model), output)
    else:
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
