"""The demo page: its controls, and the parts of the page that each of them changes.

- Every mistake that a visitor can correct is answered with a sentence on the page. The rest stays as it is:
  the page shows the picture before, and its file name.
- The upload field is emptied at once, so that it accepts the next file.
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
NO_EXAMPLE = -1
"""Index of the framed example while the page shows an upload. Gradio does not send None to the page."""

EXAMPLES, EXAMPLE_SIDE, FIRST = 8, 256, 2
"""Number and side of the generated examples, and the index of the one that the page opens with."""

LARGEST_UPLOAD = 3 * MAX_USER_BYTES
"""Bytes above which gradio refuses an upload by itself. Up to there this page words the message."""

INTRODUCTION = f"""
# Image classifiers that explain themselves

Upload a picture or choose an example: the model predicts, and shows the evidence for its prediction. Uploads
may have {MAX_USER_BYTES // 2**20} MB and {MAX_USER_PIXELS // 10**6} million pixels, and are deleted within two hours.
The examples are generated, and nothing here is a diagnosis.
"""

OPACITY = 75
"""Opacity of the maps in percent, until the visitor changes it."""

SET_OPACITY = "(percent) => document.documentElement.style.setProperty('--map-opacity', percent / 100)"

STYLE = f"""
.tiles {{display: grid; grid-template-columns: repeat(auto-fit, minmax(min(220px, 45%), 1fr)); gap: 12px}}
.beside {{display: flex; flex-wrap: wrap; gap: 20px}}
.beside figure {{flex: 0 1 300px}}
.beside > div {{flex: 1 1 260px; min-width: 0}}
.tiles figure, .beside figure {{margin: 0; min-width: 0; max-width: 420px}}
.stack {{position: relative}}
.stack img {{width: 100%; height: auto; border-radius: 4px; display: block; margin: 0}}
.stack .layer {{position: absolute; inset: 0; opacity: var(--map-opacity, {OPACITY / 100})}}
.scale {{display: flex; flex-wrap: wrap; justify-content: space-between; max-width: 340px; margin: 12px 0 4px}}
.scale div {{flex: 0 0 100%; height: 12px; border-radius: 2px; outline: 1px solid var(--border-color-primary)}}
.scale span, .small {{font-size: 0.85em; font-variant-numeric: tabular-nums}}
figcaption {{font-size: 0.85em; line-height: 1.35; margin-top: 4px; overflow-wrap: break-word}}
#prediction table {{width: 100%; border-collapse: collapse}}
#prediction :is(table, tr, th, td) {{border: none}}
#prediction :is(th, td) {{padding: 4px 10px 4px 0; text-align: left; overflow-wrap: break-word}}
#prediction td {{white-space: nowrap; font-variant-numeric: tabular-nums}}
#prediction td.bar {{width: 40%; padding-right: 0}}
#prediction td.bar div {{background: var(--color-accent); height: 0.8em; border-radius: 2px; min-width: 1px}}
.html-container {{padding: 0 !important}}
#notice:not(:has(p)) {{display: none}}
.notice {{padding: 8px 12px; border-radius: 4px; background: var(--background-fill-secondary)}}
.notice[role=alert] {{border-left: 4px solid #c2410c}}
.download {{display: inline-block; margin: 0 12px 8px 0; padding: 8px 14px; border-radius: 6px; text-decoration: none;
  color: var(--button-secondary-text-color); background: var(--button-secondary-background-fill)}}
#examples [data-testid="block-label"] {{position: static; border: none}}
#examples .grid-wrap {{min-height: 0; height: auto; overflow: visible}}
#examples .grid-container {{height: auto; grid-template: none / repeat(4, minmax(0, 1fr)); grid-auto-rows: auto}}
#examples .thumbnail-item {{aspect-ratio: 1; height: auto}}
@media (max-width: 600px) {{
  .beside figure {{flex-basis: 130px}}
  .beside > div {{flex-basis: 170px}}
  #prediction td.bar {{display: none}}
  button[role=tab] {{padding-inline: 8px !important}}
  #examples .grid-container {{grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 4px}}
}}
"""

RUNS_A_MODEL: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1, "trigger_mode": "multiple"}
"""Options of events that run a model. Explainers put hooks on a model, so that only one may run at a time.

What a visitor chooses while an answer is on its way is answered in turn: by default gradio ignores it.
"""


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
                with gr.Column(scale=2, min_width=300):
                    self._lay_out_results()
            self.picture = gr.State(self.examples[FIRST])
            self.explained = gr.State(time_to_live=HOUR)
            self.class_outputs = [
                self.explained,
                self.maps,
                self.downloads,
                self.region_tab,
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
            self.examples,
            label="Examples",
            columns=4,
            selected_index=FIRST,
            allow_preview=False,
            buttons=[],
            elem_id="examples",
        )
        self.model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
        self.opacity = gr.Slider(0, 100, OPACITY, step=1, label="Opacity of the maps in percent", elem_id="opacity")

    def _lay_out_results(self) -> None:
        self.training = gr.HTML(elem_id="training", padding=False)
        self.prediction = gr.HTML(elem_id="prediction", padding=False)
        with gr.Row():
            self.first = gr.Dropdown(label="Class", min_width=140, elem_id="first")
            self.second = gr.Dropdown(label="compared with", min_width=140, elem_id="second")
        with gr.Tabs():
            with gr.Tab("Maps"):
                self.maps = gr.HTML(elem_id="maps", padding=False)
                self.downloads = gr.HTML(elem_id="downloads", padding=False)
            with gr.Tab("Regions", visible=False) as self.region_tab:
                gr.Markdown("The bright regions carry the probability of the class.")
                label = "Locations above this fraction of the map's largest value"
                self.threshold = gr.Slider(0, 0.95, 0.05, step=0.01, label=label, elem_id="threshold")
                self.regions = gr.HTML(elem_id="regions", padding=False)
            with gr.Tab("Difference"):
                gr.Markdown("Why this class, and not the other?")
                self.difference = gr.HTML(elem_id="difference", padding=False)
            with gr.Tab("Post-hoc"):
                self.post_hoc = gr.HTML(elem_id="post_hoc", padding=False)

    def _connect(self) -> None:
        """Connect every control with its function and the parts of the page that the function changes."""
        settings = [self.model, self.threshold]
        outputs = [
            self.picture,
            self.notice,
            self.training,
            self.prediction,
            self.first,
            self.second,
            *self.class_outputs,
        ]
        shown = [self.picture, *settings]
        answered = [self.file, self.gallery, *outputs]
        self.file.upload(self.upload, [self.file, *settings], answered, api_name="upload", **RUNS_A_MODEL)
        self.gallery.select(self.choose_example, settings, outputs, api_name=False, **RUNS_A_MODEL)
        self.model.input(self.explain, shown, outputs, api_name="explain", **RUNS_A_MODEL)
        self.blocks.load(self.explain, shown, outputs, api_name=False, **RUNS_A_MODEL)
        inputs = [self.explained, self.first, self.second, self.threshold]
        self.first.input(self.choose_classes, inputs, self.class_outputs, api_name="choose_classes", **RUNS_A_MODEL)
        self.second.input(self.choose_classes, inputs, self.class_outputs, api_name=False, **RUNS_A_MODEL)
        self.threshold.change(
            self.move_threshold,
            [self.explained, self.threshold],
            self.regions,
            trigger_mode="always_last",
            show_progress="hidden",
            api_name="move_threshold",
        )
        self.opacity.change(None, self.opacity, js=SET_OPACITY, api_name=False)

    def choose_example(self, model_name: str, threshold: float, event: gr.SelectData) -> list[Any]:
        """Explain an example."""
        return self.explain(self.examples[event.index], model_name, threshold)

    def upload(self, path: str, model_name: str, threshold: float) -> list[Any]:
        """Explain an upload, take the frame from the examples, and empty the upload field for the next file."""
        answer = self.explain(path, model_name, threshold)
        is_shown = answer[0] == path
        return [None, gr.update(selected_index=NO_EXAMPLE) if is_shown else gr.skip(), *answer]

    def explain(self, path: str, model_name: str, threshold: float) -> list[Any]:
        """Explain a new picture, or the same picture by another model. A failure changes only the notice."""
        try:
            return self._explain(path, model_name, threshold)
        except ValueError as error:
            notice = views.render_notice(f"{error} The page still shows the picture before.", is_error=True)
            return [gr.skip(), notice, *[gr.skip()] * (4 + len(self.class_outputs))]

    def _explain(self, path: str, model_name: str, threshold: float) -> list[Any]:
        """Return the values of everything on the page that a new picture changes."""
        picture, model = read_user_image(path), self.models[model_name]
        explained = model.explain(picture.image, Path(path).name)
        choices = [(label, index) for index, label in enumerate(explained.labels)]
        return [
            path,
            views.render_notice(picture.remark),
            views.render_sentence(model.training, "notice"),
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
            views.render_downloads(explained),
            gr.update(visible=explained.adds_up),
            views.render_regions(explained, threshold),
            views.render_difference(explained),
            views.render_post_hoc(explained, explanations, reasons, is_vanilla=model.vanilla is not None),
        ]


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
