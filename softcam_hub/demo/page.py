"""The demo page: its controls, and the parts of the page that each of them changes.

- Every mistake that a visitor can correct is answered with a sentence on the page, and the earlier result is
  hidden.
- An upload and an example both set `picture`, and a change of `picture` starts the explanation. The upload
  field is emptied at once, so that it accepts the next file.
- Nothing on the page comes from another host, and gradio sends no statistics: the page works without a
  network.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.lesions import VARIANTS, draw
from ..models.images import MAX_USER_BYTES, MAX_USER_PIXELS, read_user_image
from . import views
from .models import DemoModel, ExplainedImage

HINT = "the demo page needs an extra package: pip install 'softcam-hub[demo]'"

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads the variable when it is imported
try:
    import gradio as gr
except ImportError as error:
    raise ImportError(HINT) from error

HOUR = 3600
EXAMPLES, EXAMPLE_SIDE = 8, 256
LARGEST_UPLOAD = 3 * MAX_USER_BYTES
"""Bytes above which gradio refuses an upload by itself. Up to there this page words the message."""

INTRODUCTION = f"""
# Image classifiers that explain themselves

Upload a picture or choose an example: the model predicts, and shows the evidence for its prediction. Uploads
may have {MAX_USER_BYTES // 2**20} MB and {MAX_USER_PIXELS // 10**6} million pixels, and are deleted within two hours.
The examples are generated, and nothing here is a diagnosis.
"""

STYLE = """
.tiles {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(160px, 45%), 1fr)); gap: 12px}
.beside {display: flex; flex-wrap: wrap; gap: 20px}
.beside figure {flex: 0 1 240px}
.beside > div {flex: 1 1 260px; min-width: 0}
.tiles figure, .beside figure {margin: 0; min-width: 0}
.tiles img, .beside img {width: 100%; height: auto; border-radius: 4px; display: block; margin: 0}
figcaption {font-size: 0.85em; line-height: 1.35; margin-top: 4px; overflow-wrap: break-word}
#prediction table {width: 100%; border-collapse: collapse}
#prediction :is(table, tr, th, td) {border: none}
#prediction :is(th, td) {padding: 4px 10px 4px 0; text-align: left; overflow-wrap: break-word}
#prediction td {white-space: nowrap; font-variant-numeric: tabular-nums}
#prediction td.bar {width: 40%; padding-right: 0}
#prediction td.bar div {background: var(--color-accent); height: 0.8em; border-radius: 2px; min-width: 1px}
.html-container {padding: 0 !important}
#notice:not(:has(p)) {display: none}
.notice {padding: 8px 12px; border-radius: 4px; background: var(--background-fill-secondary)}
.notice[role=alert] {border-left: 4px solid #c2410c}
#examples [data-testid="block-label"] {position: static; border: none}
#examples .grid-wrap {min-height: 0; height: auto; overflow: visible}
#examples .grid-container {height: auto; grid-template: none / repeat(4, minmax(0, 1fr)); grid-auto-rows: auto}
#examples .thumbnail-item {aspect-ratio: 1; height: auto}
"""

ONE_AT_A_TIME = {"concurrency_id": "models", "concurrency_limit": 1}
"""Options of events that run a model. Explainers put hooks on a model, so that only one may run at a time."""


class Page:
    """The controls of the page, and the functions that answer them.

    Args:
        models: Models to choose from.
    """

    def __init__(self, models: Sequence[DemoModel]) -> None:
        self.models = {model.name: model for model in models}
        self.folder = tempfile.TemporaryDirectory(prefix="softcam-hub-")  # exists as long as the page
        self.examples = _draw_examples(Path(self.folder.name))
        with gr.Blocks(title="softcam_hub", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as self.blocks:
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    self._lay_out_inputs()
                with gr.Column(scale=2, min_width=300, visible=False) as self.results:
                    self._lay_out_results()
            self.picture = gr.State(self.examples[2])
            self.explained = gr.State(time_to_live=HOUR)
            self.class_outputs = [
                self.explained,
                self.maps,
                self.region_section,
                self.regions,
                self.difference,
                self.post_hoc,
            ]
            self._connect()

    def _lay_out_inputs(self) -> None:
        names = list(self.models)
        self.file = gr.File(label="Your picture", file_types=["image"], type="filepath", height=140, elem_id="picture")
        self.notice = gr.HTML(elem_id="notice", padding=False)
        self.gallery = gr.Gallery(
            self.examples, label="Examples", columns=4, allow_preview=False, buttons=[], elem_id="examples"
        )
        self.model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")

    def _lay_out_results(self) -> None:
        gr.Markdown("### Prediction")
        self.prediction = gr.HTML(elem_id="prediction", padding=False)
        with gr.Row():
            self.first = gr.Dropdown(label="Class", min_width=180, elem_id="first")
            self.second = gr.Dropdown(label="compared with", min_width=180, elem_id="second")
        self.maps = gr.HTML(elem_id="maps", padding=False)
        with gr.Column(visible=False) as self.region_section:
            gr.Markdown("### Regions that carry the probability")
            label = "Locations above this fraction of the map's largest value"
            self.threshold = gr.Slider(0, 0.95, 0.05, step=0.01, label=label, elem_id="threshold")
            self.regions = gr.HTML(elem_id="regions", padding=False)
        gr.Markdown("### Why this class and not the other")
        self.difference = gr.HTML(elem_id="difference", padding=False)
        gr.Markdown("### Beside post-hoc methods")
        self.post_hoc = gr.HTML(elem_id="post_hoc", padding=False)

    def _connect(self) -> None:
        """Connect every control with its function and the parts of the page that the function changes."""
        explain = {
            "inputs": [self.picture, self.model, self.threshold],
            "outputs": [self.notice, self.results, self.prediction, self.first, self.second, *self.class_outputs],
            **ONE_AT_A_TIME,
        }
        self.file.upload(self.upload, self.file, [self.picture, self.file], api_name="upload")
        self.gallery.select(self.choose_example, outputs=self.picture, api_name=False)
        self.picture.change(self.explain, **explain, api_name="explain")
        self.model.input(self.explain, **explain, api_name=False)
        self.blocks.load(self.explain, **explain, api_name=False)
        inputs = [self.explained, self.first, self.second, self.threshold]
        self.first.input(self.choose_classes, inputs, self.class_outputs, api_name="choose_classes", **ONE_AT_A_TIME)
        self.second.input(self.choose_classes, inputs, self.class_outputs, api_name=False, **ONE_AT_A_TIME)
        self.threshold.change(
            self.move_threshold,
            [self.explained, self.threshold],
            self.regions,
            trigger_mode="always_last",
            show_progress="hidden",
            api_name="move_threshold",
        )

    def choose_example(self, event: gr.SelectData) -> str:
        """Return the file of an example."""
        return self.examples[event.index]

    def upload(self, path: str) -> tuple[str, None]:
        """Return the file of an upload, and an empty field for the next one."""
        return path, None

    def explain(self, path: str, model_name: str, threshold: float) -> list[Any]:
        """Explain a new picture, or the same picture by another model. Everything on the page changes."""
        try:
            picture = read_user_image(path)
        except ValueError as error:
            return self._show_error(str(error))
        explained = self.models[model_name].explain(picture.image)
        choices = [(label, index) for index, label in enumerate(explained.labels)]
        return [
            views.render_notice(picture.remark),
            gr.update(visible=True),
            views.render_prediction(explained),
            gr.update(choices=choices, value=explained.classes[0]),
            gr.update(choices=choices, value=explained.classes[-1], visible=len(choices) > 1),
            *self._show_classes(explained, threshold),
        ]

    def choose_classes(self, explained: ExplainedImage | None, first: int, second: int, threshold: float) -> list[Any]:
        """Explain other classes of the same picture."""
        if explained is None:  # pictures are kept for an hour
            raise gr.Error("This picture is no longer here: upload it again.")
        classes = list(dict.fromkeys((first, second)))
        return self._show_classes(self.models[explained.model].explain_classes(explained, classes), threshold)

    def move_threshold(self, explained: ExplainedImage | None, threshold: float) -> str:
        """Render the regions above another threshold."""
        return "" if explained is None else views.render_regions(explained, threshold)

    def _show_classes(self, explained: ExplainedImage, threshold: float) -> list[Any]:
        """Return the values of `class_outputs`."""
        model = self.models[explained.model]
        explanations, reasons = model.post_hoc(explained)
        return [
            explained,
            views.render_maps(explained),
            gr.update(visible=explained.adds_up),
            views.render_regions(explained, threshold),
            views.render_difference(explained),
            views.render_post_hoc(explained, explanations, reasons, is_vanilla=model.vanilla is not None),
        ]

    def _show_error(self, message: str) -> list[Any]:
        """Return a notice, and hide the results."""
        hidden = gr.update(visible=False)
        notice = views.render_notice(message, is_error=True)
        return [notice, hidden, "", gr.skip(), gr.skip(), None, "", hidden, "", "", ""]


def _draw_examples(folder: Path) -> list[str]:
    """Write generated pictures of each class in turn, and return their files."""
    classes, files = VARIANTS["lesions"], []
    for index in range(EXAMPLES):
        file = folder / f"{classes[index % len(classes)]}-{index // len(classes) + 1}.png"
        draw(index, "test", EXAMPLE_SIDE).image.save(file)
        files.append(str(file))
    return files


def open_page(sources: Sequence[str | Path], host: str | None = None, port: int | None = None) -> gr.Blocks:
    """Serve the page from a thread of its own until `close()` is called.

        open_page([softcam_hub.CAPE_LESIONS]).local_url

    Args:
        sources: Model folders, timm names or Hub ids of self-explaining models.
        host: Address to listen on. This machine only by default.
        port: Port to listen on. The first free one from 7860 by default.
    """
    blocks = Page([DemoModel(source) for source in sources]).blocks
    blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        max_file_size=LARGEST_UPLOAD,
        css=STYLE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        footer_links=[],
        share=False,
        ssr_mode=False,
    )
    return blocks
