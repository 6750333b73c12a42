"""Open a page to play with: drop a photograph or a short video, move the threshold, look.

    anoseg app --weights model_final.pth
    anoseg app --weights run/model_final.pth --port 8000

The page shows the overlay, the heat map, the segmentation and the components, and offers the maps
for download. It is served by this machine to this machine, and nothing is fetched from elsewhere.
Ctrl-C ends it. It needs gradio, which is optional: pip install -e '.[app]'
"""

import argparse
import html
import logging
import os
import sys
import tempfile
import threading
from pathlib import Path

from anoseg_d2.commands.predict import add_model_options, build_predictor
from anoseg_d2.modeling.scores import SCORES
from anoseg_d2.prediction.upload import Upload, predict_upload
from anoseg_d2.report.results import best_score, find_results, read_results
from anoseg_d2.report.thresholds import list_thresholds
from anoseg_d2.utils import cli

__all__ = ["Playground", "build_page", "main"]

logger = logging.getLogger(__name__)

_OWN_CHOICE = "chosen by hand"
# Every hour, gradio's copies of files that are a day old are deleted.
_CACHE = (3600, 86400)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The browser then refuses whatever a library's page might want from elsewhere.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self' data: blob:; form-action 'self'; frame-ancestors 'self'"
)
_ABOUT = """The model marks what belongs to none of the classes that it knows. Everything is
computed on the machine that runs it, and nothing is sent elsewhere."""
_EMPTY = """<div id="empty"><b>The result appears here</b><ol>
<li>Drop a photograph or a short video on the left, and wait for the model.</li>
<li>Choose the score, and move the threshold until the components are what you look for.</li>
<li>Read the scores in the table, or click the overlay to read those of a pixel.</li>
<li>Download the pictures, the maps and the components.</li></ol></div>"""
_STYLE = """
.gradio-container { max-width: min(1560px, 100vw) !important; margin: 0 auto;
  --body-text-color-subdued: #5b6472; --block-info-text-color: #5b6472; }
.dark .gradio-container, .gradio-container.dark { --body-text-color-subdued: #9aa4b2;
  --block-info-text-color: #9aa4b2; }
.gradio-container :is(.main, .wrap, .contain, .column, .block) { min-width: 0; }
.gradio-container h1 { overflow-wrap: anywhere; }
@media (min-width: 900px) { #controls { position: sticky; top: 12px; align-self: flex-start; } }
#empty { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 28px 32px;
  line-height: 1.9; }
#empty ol { margin: 8px 0 0; padding-left: 1.3em; list-style: decimal; }
#status .wrong { color: #b91c1c; border-left: 4px solid currentColor; padding: 6px 12px; }
.dark #status .wrong { color: #fca5a5; } #status p { margin: 0; overflow-wrap: anywhere; }
.html-container { padding: 0 !important; } #results, #results .column { gap: 8px; }
#results .row { gap: 16px; margin: 8px 0; }
.picture .image-frame { width: 100%; justify-content: center; }
.picture img { max-width: 100%; max-height: 78vh; width: auto; height: auto; }
.caption { font-size: .9rem; margin: 0; } .caption span { color: var(--body-text-color-subdued); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .85rem; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  margin-right: 6px; border: 1px solid var(--border-color-primary); vertical-align: -1px; }
.legend small { color: var(--body-text-color-subdued); }
.components { max-height: 420px; overflow: auto; border: 1px solid var(--border-color-primary);
  border-radius: 8px; }
.components table { width: 100%; border: 0 !important; border-collapse: collapse;
  font-size: .85rem; margin: 0;
  font-variant-numeric: tabular-nums; }
.components th { position: sticky; top: 0; background: var(--background-fill-secondary); }
.components td, .components th { text-align: right; padding: 4px 10px; white-space: nowrap;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_model_options(parser)
    add("--results", help="results.json or run folder whose thresholds are offered; default: "
        "next to the weights")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets every machine of "
        "the network use the page (default: %(default)s, only this machine)")  # fmt: skip
    add("--port", type=int, help="default: the first free one from 7860")
    add("--max-frames", type=int, default=60, metavar="N",
        help="of a video, the rest is left out (default: %(default)s)")  # fmt: skip
    add("--open", action="store_true", help="open the page in the browser")
    cli.add_import_option(parser)
    cli.add_verbosity_options(parser)
    return parser


def main(argv=None) -> int:
    """Parse arguments and turn a user's mistake into one line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.weights and not args.config_file:
        parser.error("give --weights, or a --config-file whose MODEL.WEIGHTS is set")
    if args.port is not None and not 0 < args.port < 65536:
        parser.error(f"--port must be in 1..65535, not {args.port}")
    if args.max_frames < 1:
        parser.error(f"--max-frames must be at least 1, not {args.max_frames}")
    return cli.run_command(lambda: run(args), "the page is closed", args.verbosity)


def run(args) -> None:
    gradio = import_gradio()  # before the model, which takes longer to read
    cli.import_modules(args.imports)
    predictor = build_predictor(args, [])
    source = args.weights or predictor.cfg.MODEL.WEIGHTS
    results = find_results(args.results or source)
    if args.results and results is None:
        raise FileNotFoundError(f"--results {args.results}: there is no results.json")
    with tempfile.TemporaryDirectory(prefix="anoseg-app-") as folder:
        # Uploads and pictures go there too, so that nothing stays behind when the page is closed.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "page"))
        playground = Playground(predictor, Path(folder), source, results, args.max_frames)
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

    if args.host not in _LOOPBACK:
        print(f"warning: with --host {args.host}, other machines can use the page", file=sys.stderr)
    _, url, _ = page.launch(
        server_name=args.host,
        server_port=args.port,
        share=False,
        inbrowser=args.open,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size="1gb",
        app_kwargs={"middleware": [Middleware(_WithPolicy)], "docs_url": None, "redoc_url": None},
        theme=gradio.themes.Default(
            primary_hue="blue",
            font=("system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ),
        css=_STYLE,
    )
    print(f"open {url} in a browser; Ctrl-C ends it", flush=True)
    try:
        threading.Event().wait()  # until Ctrl-C; gradio's own waiting would swallow it
    finally:
        page.close(verbose=False)


class _WithPolicy:
    """Add `_POLICY` to every answer; an ASGI middleware."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", [])]
                headers.append((b"content-security-policy", _POLICY.encode()))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)


class Playground:
    """What happens on the page, without the page itself.

    Args:
        predictor: `AnomalyPredictor`.
        folder: for the maps of the uploads.
        source: where the weights are from, for the title and the json.
        results: results.json of an evaluation whose thresholds are offered, if there is one.
        max_frames: most frames of a video.
    """

    def __init__(self, predictor, folder: Path, source: str, results=None, max_frames: int = 60):
        self.predictor, self.folder, self.source = predictor, folder, source
        self.thresholds = {} if results is None else list_thresholds(results)
        self.best = None if results is None else best_score(read_results(results))
        self.max_frames = max_frames

    def first_score(self) -> str:
        """Return the score to begin with: the best of the evaluation, or RbA, or any."""
        names = self.predictor.score_names
        return next((name for name in (self.best, "rba") if name in names), names[0])

    def open(self, path: str, progress=None) -> tuple[Upload | None, str]:
        """Predict an upload.

        Returns:
            the upload, None where it cannot be predicted; and html that says what it is, or what
            is wrong with it.
        """
        folder = tempfile.mkdtemp(dir=self.folder)
        try:
            upload = predict_upload(self.predictor, path, folder, self.max_frames, progress)
        except (*cli.USER_ERRORS, RuntimeError) as error:
            if isinstance(error, RuntimeError):  # out of memory, or a defect of ours
                logger.exception("%s cannot be predicted", path)
            return None, f'<p class="wrong">{html.escape(cli.one_message(error))}</p>'
        height, width = upload.size
        said = f"{upload.name}: {width} x {height} pixels"
        if upload.fps is not None:
            said += f", {len(upload.times)} frames at {upload.fps:.4g} per second"
        if upload.is_cut:
            said += "; the rest of the video is left out, --max-frames reads more"
        return upload, f"<p>{html.escape(said)}</p>"

    def presets(self, score: str) -> list[str]:
        """Thresholds to choose from, first what the user has moved the slider to."""
        return [_OWN_CHOICE, *self.thresholds.get(score, {})]

    def start(self, upload: Upload, score: str) -> tuple[str, float]:
        """Return the preset and the threshold at which a score is shown first."""
        presets = self.thresholds.get(score, {})
        if presets:
            name = next(iter(presets))
            return name, self.clamp(upload, score, presets[name])
        low, high = upload.ranges[score]
        return _OWN_CHOICE, (low + high) / 2

    def clamp(self, upload: Upload, score: str, threshold: float) -> float:
        """Return the value of the slider that is nearest to a threshold."""
        low, high, _ = upload.slider_range(score)
        return min(max(threshold, low), high)

    def download(self, upload: Upload, score: str, threshold: float, min_size: int) -> list[str]:
        """Write the files to download; returns their paths."""
        made = upload.write(score, threshold, int(min_size), {"weights": self.source})
        return [str(path) for path in made]


def legend_html(legend) -> str:
    """Return the legend of a segmentation, see `View.legend`."""
    items = (
        f'<span><i style="background:rgb{color}"></i>{html.escape(name)} '
        f"<small>{f'{100 * fraction:.1f}' if fraction >= 0.001 else '&lt; 0.1'} %</small></span>"
        for name, color, fraction in legend
    )
    return f'<div class="legend">{"".join(items)}</div>'


def components_html(components, threshold: float) -> str:
    """Return the table of the components."""
    if not components:
        return (
            f'<p class="caption">No component at or above {threshold:.4g}. Lower the threshold, or '
            "the size of the smallest component.</p>"
        )
    heads = "".join(
        f"<th>{name}</th>"
        for name in ("#", "mean", "highest", "pixels", "x", "y", "width", "height")
    )
    rows = "".join(
        f"<tr><td>{number}</td><td>{c.score:.4g}</td><td>{c.highest:.4g}</td><td>{c.area:,}</td>"
        + "".join(f"<td>{value}</td>" for value in c.box)
        + "</tr>"
        for number, c in enumerate(components, 1)
    )
    return (
        f'<div class="components"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def about_score(score: str) -> str:
    """Return the first sentence of a score's description, as html."""
    if score in SCORES:
        text = " ".join((SCORES[score].formula.__doc__ or "").split())
        text = text.partition(". ")[0].rstrip(".")
    else:
        text = "mean of the z-scores of its parts"
    return html.escape(f"{text}. Higher is more anomalous.".lstrip(". "))


def build_page(gradio, playground: Playground):
    """Lay out the page and wire it; returns gradio's Blocks.

    Args:
        gradio: the module.
        playground: what it does.
    """
    gr, scores = gradio, playground.predictor.score_names
    first = playground.first_score()
    title = "/".join(Path(playground.source).parts[-2:])
    with gr.Blocks(
        title=f"anoseg: {title}", analytics_enabled=False, fill_width=True, delete_cache=_CACHE
    ) as page:
        state = gr.State(None, delete_callback=lambda upload: upload and upload.discard())
        gr.Markdown(f"# Road anomalies by {title}\n{_ABOUT}")
        with gr.Row():
            with gr.Column(scale=1, min_width=320, elem_id="controls"):
                file = gr.File(label="Photograph or video", height=150, elem_id="file")
                status = gr.HTML(elem_id="status")
                frame = gr.Slider(0, 1, 0, step=1, label="Frame", visible=False, elem_id="frame")
                score = gr.Dropdown(
                    scores, value=first, label="Score", info=about_score(first), elem_id="score"
                )
                threshold = gr.Slider(
                    0, 1, 0.5, label="Threshold", elem_id="threshold", interactive=True,
                    info="A pixel is anomalous where its score is at least this high.",
                )  # fmt: skip
                preset = gr.Dropdown(
                    playground.presets(first),
                    value=_OWN_CHOICE, label="Threshold of an evaluation",
                    visible=bool(playground.thresholds), elem_id="preset",
                )  # fmt: skip
                min_size = gr.Number(
                    50, label="Smallest component, pixels", minimum=1, precision=0, elem_id="size"
                )
            with gr.Column(scale=3, min_width=320):
                empty = gr.HTML(_EMPTY)
                with gr.Column(visible=False, elem_id="results") as results:
                    overlay = _picture(gr, "overlay", "Overlay", "the score over the picture, and "
                        "every component with its mean score; click to read a pixel")  # fmt: skip
                    probe = gr.HTML(elem_id="probe")
                    with gr.Row():
                        with gr.Column(min_width=320):
                            heatmap = _picture(gr, "heatmap", "Heat map",
                                "on the scale, the white line is the threshold")  # fmt: skip
                        with gr.Column(min_width=320):
                            segmentation = _picture(gr, "segmentation", "Segmentation",
                                "each pixel's most probable known class")  # fmt: skip
                            legend = gr.HTML(elem_id="legend")
                    gr.HTML(_caption("Components", "at or above the threshold, in pixels"))
                    table = gr.HTML(elem_id="components")
                    gr.HTML(_caption("Downloads", "at native size: the pictures, the score as a "
                        "16-bit image, all maps, and the components as COCO json"))  # fmt: skip
                    prepare = gr.Button("Prepare the files", size="sm", elem_id="prepare")
                    files = gr.File(
                        show_label=False, visible=False, interactive=False, elem_id="files"
                    )

        shown = [overlay, heatmap, segmentation, legend, table, files]
        knobs = [state, frame, score, threshold, min_size]

        def show(upload, index, score, threshold, min_size):
            if upload is None or min_size is None:
                return [gr.skip()] * len(shown)
            view = upload.view(int(index), score, threshold, int(min_size))
            return [
                view.overlay,
                view.heatmap,
                view.segmentation,
                legend_html(view.legend),
                components_html(view.components, threshold),
                gr.update(visible=False),  # files of another threshold would mislead
            ]

        def choose(upload, index, score, min_size):
            """Another score: its own slider, presets and views."""
            if upload is None:
                return [gr.update(info=about_score(score)), *[gr.skip()] * (2 + len(shown))]
            name, value = playground.start(upload, score)
            low, high, step = upload.slider_range(score)
            return [
                gr.update(info=about_score(score)),
                gr.update(minimum=low, maximum=high, step=step, value=value),
                gr.update(choices=playground.presets(score), value=name),
                *show(upload, index, score, value, min_size),
            ]

        def receive(path, old, score, min_size, progress=gr.Progress()):  # noqa: B008
            if old is not None:
                old.discard()
            if path is None:
                upload, said = None, ""
            else:
                progress(0, desc="predicting")
                upload, said = playground.open(path, lambda done, of: progress((done, of)))
            is_video = upload is not None and upload.fps is not None
            last = len(upload.times) - 1 if is_video else 1
            return [
                upload,
                said,
                gr.update(visible=upload is not None),
                gr.update(visible=upload is None),
                gr.update(visible=is_video and last > 0, maximum=max(last, 1), value=0),
                "",
                *choose(upload, 0, score, min_size),
            ]

        def take(upload, index, score, name, min_size):
            """A threshold of the evaluation."""
            value = playground.thresholds.get(score, {}).get(name)
            if upload is None or value is None:
                return [gr.skip()] * (1 + len(shown))
            value = playground.clamp(upload, score, value)
            return [value, *show(upload, index, score, value, min_size)]

        def read(upload, index, event: gr.SelectData):
            x, y, known, values = upload.pixel(int(index), *event.index)
            listed = ", ".join(f"{html.escape(s)} {v:.4g}" for s, v in values.items())
            return f'<p class="caption">x {x}, y {y}: <b>{html.escape(known)}</b> {listed}</p>'

        def pack(upload, score, threshold, min_size, progress=gr.Progress()):  # noqa: B008
            progress(0, desc="writing")
            return gr.update(
                value=playground.download(upload, score, threshold, min_size), visible=True
            )

        chosen = [score, threshold, preset, *shown]
        # One queue for everything, so that a late picture never hides the files made after it.
        queued = {"concurrency_id": "page", "concurrency_limit": 1}
        # By default, a choice made while another is being drawn would be dropped.
        queued["trigger_mode"] = "always_last"
        live = {**queued, "show_progress": "hidden"}
        file.change(
            receive,
            [file, state, score, min_size],
            [state, status, results, empty, frame, probe, *chosen],
            show_progress_on=[status],
            **queued,
        )
        score.input(choose, [state, frame, score, min_size], chosen, **queued)
        for knob in (frame, threshold, min_size):
            knob.input(show, knobs, shown, **live)
        threshold.input(lambda: _OWN_CHOICE, None, preset, show_progress="hidden")
        preset.input(take, [state, frame, score, preset, min_size], [threshold, *shown], **queued)
        overlay.select(read, [state, frame], probe, **live)
        prepare.click(pack, [state, score, threshold, min_size], files, **queued)
    return page


def _picture(gr, name: str, title: str, text: str):
    gr.HTML(_caption(title, text))
    return gr.Image(
        format="jpeg",
        interactive=False,
        show_label=False,
        alt_text=title,
        buttons=["download", "fullscreen"],
        elem_id=name,
        elem_classes="picture",
    )


def _caption(title: str, text: str) -> str:
    return f'<p class="caption"><b>{title}</b> <span>{text}</span></p>'
