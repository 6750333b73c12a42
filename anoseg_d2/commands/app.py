"""Try a model in the browser: drop a photograph, move the threshold, look.

    anoseg app --weights model_final.pth
    anoseg app --weights run/model_final.pth --port 8000

The page shows the overlay, the heat map, the segmentation and the components. It is served by this
machine to this machine; Ctrl-C ends it. It needs gradio, which is optional:
pip install -e '.[app]'
"""

import argparse
import os
import sys
import threading
from pathlib import Path

import numpy as np

from anoseg_d2.commands.predict import add_model_options, build_predictor
from anoseg_d2.data.image_io import read_image
from anoseg_d2.evaluation.alarm_rate import describe_alarm
from anoseg_d2.prediction.detections import find_detections
from anoseg_d2.prediction.pictures import add_color_bar, display_range, draw_detections, glow
from anoseg_d2.report.results import best_score, read_results, results_of_weights
from anoseg_d2.report.thresholds import holds_for, list_thresholds
from anoseg_d2.utils import cli
from anoseg_d2.utils.constants import SHIPPED_NAME
from anoseg_d2.utils.ranges import integer
from anoseg_d2.utils.visualization import color_classes, overlay

OPTIONS = {"--port": integer(1, 65535)}


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    add = parser.add_argument
    add_model_options(parser)
    add("--results", help="evaluation with the first thresholds; default: next to the weights")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the whole network")
    add("--port", type=int, help="default: the first free one from 7860")
    add("--unit-scale", action="store_true", help="show scores on 0..1, the threshold at 0.5")
    add("--open", action="store_true", help="open the page in the browser")
    return parser


@cli.command(build_parser, OPTIONS)
def main(args: argparse.Namespace) -> None:
    """Load the model and serve its page until Ctrl-C."""
    args.weights = args.weights or (None if args.config_file else SHIPPED_NAME)
    gradio = import_gradio()  # before the model, which takes longer to read
    from anoseg_d2.config import load_config  # it imports torch: seconds

    # Thresholds hold for the settings of their evaluation, so the model is built with these.
    source = args.weights or load_config(args.config_file, args.opts).MODEL.WEIGHTS
    results = results_of_weights(args.results, source)
    predictor = build_predictor(args, [], results)
    if results and not holds_for(results, predictor, bool(args.results)):
        results = None
    playground = Playground(predictor, source, results, args.unit_scale)
    serve(build_page(gradio, playground), args)


def serve(page, args) -> None:
    """Serve the page until Ctrl-C."""
    how = {"quiet": True, "show_error": True, "prevent_thread_lock": True, "inbrowser": args.open}
    _, url, _ = page.launch(server_name=args.host, server_port=args.port, **how)
    if args.host != "127.0.0.1":
        print(f"warning: with --host {args.host}, other machines can use the page", file=sys.stderr)
    print(f"open {url} in a browser; press Ctrl-C to stop", flush=True)
    try:
        threading.Event().wait()  # until Ctrl-C; gradio's own waiting would swallow it
    finally:
        page.close(verbose=False)


def import_gradio():
    """Import gradio, with its telemetry off.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            f"the page needs gradio, which is optional ({error}): pip install -e '.[app]' in the "
            "checkout, or pip install 'gradio>=6'"
        ) from error
    return gradio


class Playground:
    """What the page does, independent of its layout.

    A photograph is predicted once; its maps are kept, so that another score or threshold needs no
    second prediction.

    Args:
        predictor: `AnomalyPredictor`.
        source: where the weights are from, for the title.
        results: results.json of an evaluation that gives the first thresholds, if there is one.
        unit_scale: show scores on 0..1 where the weights have a threshold, which is at 0.5 then.
    """

    def __init__(self, predictor, source: str, results=None, unit_scale: bool = False):
        self.predictor, self.source = predictor, source
        self.on_unit = set(predictor.thresholds) if unit_scale else set()
        self.thresholds = {} if results is None else list_thresholds(results)
        best = None if results is None else best_score(read_results(results))
        names = predictor.score_names
        self.first_score = next((name for name in (best, "rba") if name in names), names[0])

    def open(self, path: str) -> tuple[dict | None, str]:
        """Predict a file; returns its photo and maps, and a sentence: its size or what is wrong."""
        name = Path(path).name
        try:
            photo = read_image(path)
            result = self.predictor(photo[..., ::-1])
        except (*cli.USER_ERRORS, RuntimeError) as error:
            # The user chose a file, not the folder that gradio keeps it in.
            return None, f"error: {cli.one_message(error)}".replace(f"{Path(path).parent}/", "")
        if self.on_unit:
            result["scores"] |= self.predictor.unit_scores(result)
        height, width = photo.shape[:2]
        return {"photo": photo, **result}, f"{name}: {width} x {height} pixels"

    def slider(self, opened: dict, score: str) -> dict:
        """Return ends, first value and note of the threshold's slider for a score."""
        values = opened["scores"][score]
        low, high = self._ends(score, values)
        finite = values[np.isfinite(values)]
        low, high = float(finite.min(initial=low)), float(finite.max(initial=high))
        known = dict(self.thresholds.get(score, {}))  # the best F1 comes first
        if record := self.predictor.thresholds.get(score):
            at = 0.5 if score in self.on_unit else record["threshold"]
            known = {describe_alarm(record): at}
        name, value = next(iter(known.items()), ("the middle of the scale", (low + high) / 2))
        return {
            "minimum": low,
            "maximum": high,
            "step": (high - low) / 200,
            "value": min(max(value, low), high),
            "info": f"initially at {name}",
        }

    def view(self, opened: dict, score: str, threshold: float, min_size: int) -> tuple:
        """Return overlay, heat map and segmentation, (H, W, 3) uint8 RGB, and the components."""
        photo, values = opened["photo"], opened["scores"][score]
        ends = self._ends(score, values)
        found = find_detections(values, threshold, min_size)
        classes = color_classes(opened["sem_seg"], self.predictor.palette)
        return (
            draw_detections(glow(photo, values, *ends), found),
            add_color_bar(values, *ends, score, threshold),
            overlay(photo, classes, 0.6),
            [[f"{c.score:.4g}", f"{c.highest:.4g}", c.area, *c.box] for c in found],
        )

    def _ends(self, score: str, values: np.ndarray) -> tuple[float, float]:
        return (0.0, 1.0) if score in self.on_unit else display_range(score, values)


def build_page(gradio, playground: Playground):
    """Lay out the page and wire it; returns gradio's Blocks.

    Args:
        gradio: the module.
        playground: what it does.
    """
    gr, names = gradio, playground.predictor.score_names
    title = "/".join(Path(playground.source).parts[-2:])
    columns = ["mean", "highest", "pixels", "x", "y", "width", "height"]
    # Every hour, gradio's copies of files that are a day old are deleted.
    with gr.Blocks(title=f"anoseg: {title}", delete_cache=(3600, 86400)) as page:
        opened = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                file = gr.File(label="Photograph", height=150, elem_id="file")
                status = gr.Textbox(f"model: {title}", label="Status", elem_id="status")
                first = playground.first_score
                score = gr.Dropdown(names, value=first, label="Score", elem_id="score")
                threshold = gr.Slider(0, 1, 0.5, label="Threshold", elem_id="threshold")
                min_size = gr.Number(50, label="Smallest component, pixels", minimum=1, precision=0)
            with gr.Column(scale=3, min_width=320):
                shown = [
                    gr.Image(label=name, format="jpeg", interactive=False, elem_id=name.lower())
                    for name in ("Overlay", "Heatmap", "Segmentation")
                ]
                shown.append(
                    gr.Dataframe(headers=columns, label="Components", elem_id="components")
                )

        def show(opened, score, threshold, min_size):
            if opened is None:
                return [gr.skip()] * len(shown)
            return playground.view(opened, score, threshold, int(min_size or 1))

        def choose(opened, score, min_size):
            """Give the slider the range of another score."""
            if opened is None:
                return [gr.skip()] * (1 + len(shown))
            slider = playground.slider(opened, score)
            return [gr.update(**slider), *show(opened, score, slider["value"], min_size)]

        def receive(path, score, min_size):
            new, said = (None, f"model: {title}") if path is None else playground.open(path)
            return [new, said, *choose(new, score, min_size)]

        # By default, a choice made while another is being drawn would be dropped.
        queued = {"concurrency_limit": 1, "trigger_mode": "always_last"}
        file.change(receive, [file, score, min_size], [opened, status, threshold, *shown], **queued)
        score.input(choose, [opened, score, min_size], [threshold, *shown], **queued)
        for knob in (threshold, min_size):
            knob.input(show, [opened, score, threshold, min_size], shown, **queued)
    return page
