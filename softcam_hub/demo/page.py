"""The page: what is asked, in which order, and what each answer changes.

- Whatever a visitor can put right is answered with a sentence on the page, and what was shown before goes away.
- An upload and an example both set `picture`, and only what follows a change of it looks at it. The upload field is
  emptied at once, so that it takes the next file.
- Nothing on the page comes from another host, and gradio reports nothing: it works without a network.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.images import MAX_USER_BYTES, MAX_USER_PIXELS
from ..data.lesions import VARIANTS, draw
from . import views
from .answers import Answer, Answers

HINT = "the demo page needs an extra package: pip install 'softcam-hub[demo]'"

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when it is imported
try:
    import gradio as gr
except ImportError as error:
    raise ImportError(HINT) from error

HOUR = 3600
EXAMPLES, EXAMPLE_SIDE = 8, 256
LARGEST_UPLOAD = 3 * MAX_USER_BYTES
"""What gradio refuses, in words of its own; below that we do."""

INTRODUCTION = f"""
# Image classifiers that explain themselves

Upload a picture or pick an example: the model predicts, and shows the evidence that its prediction is made of. Uploads
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

ASKING = {"concurrency_id": "models", "concurrency_limit": 1}
"""One visitor at a time: explainers put hooks on a model while they run."""


class Page:
    """The controls, and what they do.

    Args:
        answers: of the models.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.folder = tempfile.TemporaryDirectory(prefix="softcam-hub-")  # there as long as the page is
        self.examples = _draw_examples(Path(self.folder.name))
        with gr.Blocks(title="softcam_hub", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as self.blocks:
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    self._lay_out_questions()
                with gr.Column(scale=2, min_width=300, visible=False) as self.shown:
                    self._lay_out_answer()
            self.picture = gr.State(self.examples[2])
            self.kept = gr.State(time_to_live=HOUR)
            self.of_classes = [self.kept, self.maps, self.sliding, self.regions, self.difference, self.post_hoc]
            self._connect()

    def _lay_out_questions(self) -> None:
        names = list(self.answers.viewers)
        self.file = gr.File(label="Your picture", file_types=["image"], type="filepath", height=140, elem_id="picture")
        self.notice = gr.HTML(elem_id="notice", padding=False)
        self.gallery = gr.Gallery(
            self.examples, label="Examples", columns=4, allow_preview=False, buttons=[], elem_id="examples"
        )
        self.model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")

    def _lay_out_answer(self) -> None:
        gr.Markdown("### Prediction")
        self.prediction = gr.HTML(elem_id="prediction", padding=False)
        with gr.Row():
            self.first = gr.Dropdown(label="Class", min_width=180, elem_id="first")
            self.second = gr.Dropdown(label="compared with", min_width=180, elem_id="second")
        self.maps = gr.HTML(elem_id="maps", padding=False)
        with gr.Column(visible=False) as self.sliding:
            gr.Markdown("### Regions that carry the probability")
            label = "Locations above this fraction of the map's largest value"
            self.threshold = gr.Slider(0, 0.95, 0.05, step=0.01, label=label, elem_id="threshold")
            self.regions = gr.HTML(elem_id="regions", padding=False)
        gr.Markdown("### Why this class and not the other")
        self.difference = gr.HTML(elem_id="difference", padding=False)
        gr.Markdown("### Beside post-hoc methods")
        self.post_hoc = gr.HTML(elem_id="post_hoc", padding=False)

    def _connect(self) -> None:
        everything = [self.notice, self.shown, self.prediction, self.first, self.second, *self.of_classes]
        looking = {"inputs": [self.picture, self.model, self.threshold], "outputs": everything, **ASKING}
        self.file.upload(self.take, self.file, [self.picture, self.file], api_name="take")
        self.gallery.select(self.pick, outputs=self.picture, api_name=False)
        self.picture.change(self.look, **looking, api_name="look")
        self.model.input(self.look, **looking, api_name=False)
        self.blocks.load(self.look, **looking, api_name=False)
        chosen = [self.kept, self.first, self.second, self.threshold]
        for menu in (self.first, self.second):
            name = "choose" if menu is self.first else False
            menu.input(self.choose, chosen, self.of_classes, api_name=name, **ASKING)
        moving = {"trigger_mode": "always_last", "show_progress": "hidden", "api_name": "slide"}
        self.threshold.change(self.slide, [self.kept, self.threshold], self.regions, **moving)

    def pick(self, event: gr.SelectData) -> str:
        """The picture of an example."""
        return self.examples[event.index]

    def take(self, path: str) -> tuple[str, None]:
        """The picture of an upload, and an empty field for the next."""
        return path, None

    def look(self, path: str, model: str, threshold: float) -> list[Any]:
        """A new picture or another model: everything changes."""
        try:
            answer, remark = self.answers.look(path, model)
        except ValueError as error:
            return self._nothing(views.notice(str(error), mistake=True))
        choices = [(label, index) for index, label in enumerate(self.answers.viewer_of(answer).labels)]
        first = gr.update(choices=choices, value=answer.classes[0])
        second = gr.update(choices=choices, value=answer.classes[-1], visible=len(choices) > 1)
        heading = [views.notice(remark), gr.update(visible=True), self.answers.prediction(answer), first, second]
        return [*heading, *self._of_classes(answer, threshold)]

    def choose(self, answer: Answer | None, first: int, second: int, threshold: float) -> list[Any]:
        """Other classes of the same picture."""
        if answer is None:  # kept for an hour only
            raise gr.Error("This picture is no longer here: upload it again.")
        return self._of_classes(self.answers.choose(answer, list(dict.fromkeys((first, second)))), threshold)

    def slide(self, answer: Answer | None, threshold: float) -> str:
        """Another threshold."""
        return "" if answer is None else self.answers.regions(answer, threshold)

    def _of_classes(self, answer: Answer, threshold: float) -> list[Any]:
        """For `of_classes`."""
        return [
            answer,
            self.answers.maps(answer),
            gr.update(visible=answer.adds_up),
            self.answers.regions(answer, threshold),
            self.answers.difference(answer),
            self.answers.post_hoc(answer),
        ]

    def _nothing(self, notice: str) -> list[Any]:
        """A notice, and no answer."""
        hidden = gr.update(visible=False)
        return [notice, hidden, "", gr.skip(), gr.skip(), None, "", hidden, "", "", ""]


def _draw_examples(folder: Path) -> list[str]:
    """Files of generated pictures, each class in turn."""
    classes, files = VARIANTS["lesions"], []
    for index in range(EXAMPLES):
        file = folder / f"{classes[index % len(classes)]}-{index // len(classes) + 1}.png"
        draw(index, "test", EXAMPLE_SIDE).image.save(file)
        files.append(str(file))
    return files


def open_page(sources: Sequence[str | Path], host: str | None = None, port: int | None = None) -> gr.Blocks:
    """Serve the page from a thread of its own, until `close()`.

        open_page([softcam_hub.CAPE_LESIONS]).local_url

    Args:
        sources: models of ours: folders, timm names or Hub ids.
        host: address to listen on; by default this machine only.
        port: by default the first free one from 7860.
    """
    blocks = Page(Answers(sources)).blocks
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
