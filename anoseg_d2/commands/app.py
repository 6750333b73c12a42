"""Try a model in the browser: drop a photograph, move the threshold, look.

    anoseg app --weights model_final.pth
    anoseg app --weights run/model_final.pth --port 8000

The page shows the overlay, the heat map, the segmentation and the components, and offers the maps
for download. It is served by this machine to this machine, and nothing is fetched from elsewhere.
Ctrl-C ends it. It needs gradio, which is optional: pip install -e '.[app]'
"""

import argparse
import logging
import os
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

from anoseg_d2.commands.predict import add_model_options, build_predictor
from anoseg_d2.prediction.upload import Upload
from anoseg_d2.report.results import best_score, read_results, results_of_weights
from anoseg_d2.report.thresholds import holds_for, list_thresholds
from anoseg_d2.utils import cli
from anoseg_d2.utils.ranges import integer

__all__ = ["Playground", "build_page", "main"]

logger = logging.getLogger(__name__)

OPTIONS = {"--port": integer(1, 65535)}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Gradio's page asks other servers for scripts and fonts; the browser then refuses to fetch them.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self' data: blob:; form-action 'self'; frame-ancestors 'self'"
)


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = cli.build_parser(__doc__, imports=True)
    add = parser.add_argument
    add_model_options(parser)
    add("--results", help="results.json or run folder with the first thresholds; default: "
        "next to the weights")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets every machine of "
        "the network use the page (default: %(default)s, only this machine)")  # fmt: skip
    add("--port", type=int, help="default: the first free one from 7860")
    add("--open", action="store_true", help="open the page in the browser")
    return parser


def main(argv=None) -> int:
    """Parse arguments and turn a user's mistake into one line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.weights and not args.config_file:
        parser.error("give --weights, or a --config-file whose MODEL.WEIGHTS is set")
    return cli.run_command(lambda: run(args), "stopped", args.verbosity)


def run(args) -> None:
    """Load the model and serve its page until Ctrl-C."""
    cli.check_options(args, OPTIONS)
    with tempfile.TemporaryDirectory(prefix="anoseg-app-") as folder:
        # Uploads go there too, so that nothing stays behind; gradio reads this when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "page"))
        gradio = import_gradio()  # before the model, which takes longer to read
        cli.import_modules(args.imports)
        from anoseg_d2.config import load_config  # it imports torch: seconds

        # Thresholds hold for the settings of their evaluation, so the model is built with these.
        source = args.weights or load_config(args.config_file, args.opts).MODEL.WEIGHTS
        results = results_of_weights(args.results, source)
        predictor = build_predictor(args, [], results)
        if results and not holds_for(results, predictor, bool(args.results)):
            results = None
        playground = Playground(predictor, Path(folder), source, results)
        serve(gradio, build_page(gradio, playground), args)


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


def serve(gradio, page, args) -> None:
    """Serve the page until Ctrl-C."""
    from starlette.middleware import Middleware

    hosts = _LOOPBACK
    if args.host not in _LOOPBACK:
        print(f"warning: with --host {args.host}, other machines can use the page", file=sys.stderr)
        hosts = None
    _, url, _ = page.launch(
        server_name=args.host,
        server_port=args.port,
        share=False,
        inbrowser=args.open,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        max_file_size="1gb",
        app_kwargs={
            "middleware": [Middleware(Guard, hosts=hosts)],
            "docs_url": None,
            "redoc_url": None,
        },  # fmt: skip
        theme=gradio.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",)),
    )
    print(f"open {url} in a browser; press Ctrl-C to stop", flush=True)
    try:
        threading.Event().wait()  # until Ctrl-C; gradio's own waiting would swallow it
    finally:
        page.close(verbose=False)


class Guard:
    """Refuse requests to another host's name, and add `_POLICY` to every answer; ASGI middleware.

    A web page elsewhere can have its own name resolve to this machine (DNS rebinding); its requests
    then carry that name.

    Args:
        app: what answers.
        hosts: names of this machine; None allows any.
    """

    def __init__(self, app, hosts=None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope, receive, send):
        async def guarded(message):
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        host = dict(scope.get("headers", [])).get(b"host", b"").decode("latin-1")
        web = scope["type"] in ("http", "websocket")
        if web and self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            await guarded({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"this page is for its machine only"})
            return
        await self.app(scope, receive, guarded)


class Playground:
    """Actions of the page, independent of its layout.

    Args:
        predictor: `AnomalyPredictor`.
        folder: for the files to download.
        source: where the weights are from, for the title and the json.
        results: results.json of an evaluation that gives the first thresholds, if there is one.
    """

    def __init__(self, predictor, folder: Path, source: str, results=None):
        self.predictor, self.folder, self.source = predictor, folder, source
        self.thresholds = {} if results is None else list_thresholds(results)
        best = None if results is None else best_score(read_results(results))
        names = predictor.score_names
        self.first_score = next((name for name in (best, "rba") if name in names), names[0])

    def open(self, path: str) -> tuple[Upload | None, str]:
        """Predict an upload; returns it and a description, or None and what is wrong."""
        try:
            upload = Upload(self.predictor, path)
        except (*cli.USER_ERRORS, RuntimeError) as error:
            if isinstance(error, RuntimeError):  # out of memory, or a defect of ours
                logger.exception("%s cannot be predicted", path)
            # The user chose a file, not the folder that the page keeps it in.
            return None, f"error: {cli.one_message(error)}".replace(f"{Path(path).parent}/", "")
        height, width = upload.sem_seg.shape
        return upload, f"{upload.name}: {width} x {height} pixels"

    def threshold(self, upload: Upload, score: str) -> tuple[float, str]:
        """Return the initial threshold of a score and where it comes from."""
        low, high = upload.extremes(score)
        for name, value in self.thresholds.get(score, {}).items():
            return min(max(value, low), high), f"initially that of {name}"
        return (low + high) / 2, "initially the middle of the scale"


def build_page(gradio, playground: Playground):
    """Lay out the page and wire it; returns gradio's Blocks.

    Args:
        gradio: the module.
        playground: what it does.
    """
    gr, predictor, first = gradio, playground.predictor, playground.first_score
    title = "/".join(Path(playground.source).parts[-2:])
    colors = {
        name: "#{:02x}{:02x}{:02x}".format(*color)
        for name, color in zip(predictor.class_names, predictor.palette.tolist(), strict=False)
    }
    columns = ["mean", "highest", "pixels", "x", "y", "width", "height"]
    # Every hour, gradio's copies of files that are a day old are deleted.
    with gr.Blocks(
        title=f"anoseg: {title}", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        state = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                file = gr.File(label="Photograph", height=150, elem_id="file")
                status = gr.Textbox(f"model: {title}", label="Status", elem_id="status")
                score = gr.Dropdown(
                    predictor.score_names, value=first, label="Score", elem_id="score"
                )
                threshold = gr.Slider(0, 1, 0.5, label="Threshold", elem_id="threshold")
                min_size = gr.Number(50, label="Smallest component, pixels", minimum=1, precision=0)
            with gr.Column(scale=3, min_width=320):
                pictures = [
                    gr.Image(label=name, format="jpeg", interactive=False, elem_id=name.lower())
                    for name in ("Overlay", "Heatmap", "Segmentation")
                ]
                classes = gr.HighlightedText(
                    label="Most probable known class", color_map=colors, elem_id="classes"
                )
                table = gr.Dataframe(headers=columns, label="Components", elem_id="components")
                prepare = gr.Button("Prepare the files to download", elem_id="prepare")
                files = gr.File(label="Files", visible=False, interactive=False, elem_id="files")

        shown = [*pictures, classes, table, files]

        def show(upload, score, threshold, min_size):
            if upload is None or min_size is None:
                return [gr.skip()] * len(shown)
            view = upload.view(score, threshold, int(min_size))
            present = [(f"{fraction:.1%}", name) for name, fraction in view.classes]
            rows = [[f"{c.score:.4g}", f"{c.highest:.4g}", c.area, *c.box] for c in view.components]
            # Files of another threshold would mislead.
            return [*view[:3], present, rows, gr.update(visible=False)]

        def choose(upload, score, min_size):
            """Give the slider the range of another score."""
            if upload is None:
                return [gr.skip()] * (1 + len(shown))
            low, high = upload.extremes(score)
            value, origin = playground.threshold(upload, score)
            slider = {"minimum": low, "maximum": high, "step": (high - low) / 200, "info": origin}
            return [gr.update(value=value, **slider), *show(upload, score, value, min_size)]

        def receive(path, score, min_size):
            upload, said = (None, f"model: {title}") if path is None else playground.open(path)
            return [upload, said, *choose(upload, score, min_size)]

        def pack(upload, score, threshold, min_size):
            if upload is None:
                return gr.skip()
            info = {"weights": playground.source}
            made = upload.write(playground.folder, score, threshold, int(min_size or 1), info)
            return gr.update(value=str(made), visible=True)

        # One queue for everything, so that a late picture never hides the files made after it; and
        # by default, a choice made while another is being drawn would be dropped.
        queued = {"concurrency_id": "page", "concurrency_limit": 1, "trigger_mode": "always_last"}
        knobs = [state, score, threshold, min_size]
        file.change(receive, [file, score, min_size], [state, status, threshold, *shown], **queued)
        score.input(choose, [state, score, min_size], [threshold, *shown], **queued)
        for knob in (threshold, min_size):
            knob.input(show, knobs, shown, show_progress="hidden", **queued)
        prepare.click(pack, knobs, files, **queued)
    return page
