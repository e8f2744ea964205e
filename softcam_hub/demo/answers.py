"""What the demo page answers: a picture looked at by a model, other classes chosen, the threshold moved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from .. import CAPE_LESIONS
from ..data.images import read_user_image
from ..figures.numbers import format_share
from ..models.explanation import Explanation
from . import views
from .viewer import Viewer


@dataclass(frozen=True)
class Answer:
    """What is kept of a visitor's picture, so that the menus and the slider do not read it again.

    Args:
        model: its name in the menu.
        pixels: (1, 3, H, W), as the model took it.
        seen: the same as a picture.
        probabilities: of all classes, (C,).
        explanations: of the chosen classes, by kind of map; the first kind composes the prediction.
    """

    model: str
    pixels: Tensor
    seen: Image.Image
    probabilities: Tensor
    explanations: dict[str, Explanation]

    @property
    def own(self) -> Explanation:
        return next(iter(self.explanations.values()))

    @property
    def classes(self) -> list[int]:
        return self.own.classes[0].tolist()

    @property
    def adds_up(self) -> bool:
        """Whether the maps are probabilities."""
        return self.own.kind == "cape"


class Answers:
    """Asks the models, and puts what they say into HTML.

    Args:
        sources: models of ours: folders, timm names or Hub ids.
    """

    def __init__(self, sources: Sequence[str | Path]) -> None:
        self.viewers = {_name_of(source): Viewer(source) for source in sources}

    def look(self, path: str | Path, model: str) -> tuple[Answer, str]:
        """The answer on a new picture, with its two most probable classes chosen, and a remark on the file."""
        picture, viewer = read_user_image(path), self.viewers[model]
        pixels = viewer.see(picture.image)
        probabilities = viewer.probabilities(pixels)
        classes = probabilities.topk(min(2, len(viewer.labels))).indices.tolist()
        explanations = viewer.explain(pixels, classes)
        return Answer(model, pixels, viewer.seen(pixels), probabilities, explanations), picture.remark

    def choose(self, answer: Answer, classes: list[int]) -> Answer:
        """The same picture with other classes."""
        return replace(answer, explanations=self.viewer_of(answer).explain(answer.pixels, classes))

    def viewer_of(self, answer: Answer) -> Viewer:
        """The model that has answered."""
        return self.viewers[answer.model]

    def prediction(self, answer: Answer) -> str:
        return views.prediction(answer.seen, self.viewer_of(answer).labels, answer.probabilities)

    def maps(self, answer: Answer) -> str:
        return views.own_maps(answer.seen, answer.explanations, self.viewer_of(answer).labels)

    def regions(self, answer: Answer, threshold: float) -> str:
        """Nothing where the maps do not add up to the probability."""
        if not answer.adds_up:
            return ""
        return views.regions(answer.seen, answer.own, self.viewer_of(answer).labels, threshold)

    def difference(self, answer: Answer) -> str:
        if len(answer.classes) < 2:
            return views.sentence("Choose two different classes to compare them.")
        return views.difference(answer.seen, answer.own, self.viewer_of(answer).labels)

    def post_hoc(self, answer: Answer) -> str:
        """Maps of the first class, and what they are maps of."""
        viewer, index = self.viewer_of(answer), answer.classes[0]
        others, left_out = viewer.post_hoc(answer.pixels, index)
        texts = [f"Maps of {viewer.labels[index]}, each scaled from its own minimum to its own maximum."]
        for probability in {float(other.probabilities[0, 0]) for other in others.values()}:
            subject = "the vanilla twin of this model" if viewer.twin else "this same model, through its gradients"
            texts.append(f"The post-hoc methods explain {subject}, which gives it {format_share(probability)}.")
        if left_out:
            texts.append(f"Not possible here: {', '.join(left_out)}.")
        return views.sentence(" ".join(texts)) + views.side_by_side(answer.seen, answer.own, others)


def _name_of(source: str | Path) -> str:
    """What the menu calls a model."""
    return Path(source).name if Path(source) == Path(CAPE_LESIONS) else str(source)
