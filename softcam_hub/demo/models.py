"""The models of the demo page, which explain a picture by their own maps and by post-hoc methods.

- Post-hoc maps explain the *vanilla* classifier of a model: the folder `vanilla` beside the model's (`twin`
  in older runs), or the classifier that the model can be turned back into. Where there is none, they explain
  the model's own logits, through their gradients.
- A post-hoc method that does not fit the model is left out, with the reason. That may depend on the picture.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .. import CAPE_LESIONS
from ..data.lesions import VARIANTS
from ..evaluation.models import (
    DEFAULT_POST_HOC,
    VANILLA,
    ClassifierWithExplainers,
    has_same_backbone,
    pair_models,
)
from ..explainers.methods import find_grid
from ..hub.cards.records import METRICS, read_optional_mapping
from ..loading import LoadedClassifier, load_classifier
from ..models.explanation import Explanation
from ..models.flip_registration import measure_on_first_use
from ..models.self_explaining import SelfExplaining
from ..models.text import abbreviate, printable


@dataclass(frozen=True)
class ExplainedImage:
    """The picture of a visitor with its prediction and maps, kept for the menus and the slider.

    Args:
        model: Name of the model in the menu.
        file: File name of the picture.
        labels: Names of all classes.
        pixels: Input of the model, (1, 3, H, W).
        probabilities: Probabilities of all classes, (C,).
        explanations: Kind of map -> maps of the chosen classes. The first kind composes the prediction.
    """

    model: str
    file: str
    labels: list[str]
    pixels: Tensor
    probabilities: Tensor
    explanations: dict[str, Explanation]

    @property
    def explanation(self) -> Explanation:
        """The maps that compose the prediction."""
        return next(iter(self.explanations.values()))

    @property
    def image(self) -> Image.Image:
        """Picture that the model saw, resized and cropped."""
        return self.explanation.image

    @property
    def classes(self) -> list[int]:
        """Indices of the chosen classes."""
        return self.explanation.classes[0].tolist()

    @property
    def adds_up(self) -> bool:
        """Whether the maps are probabilities."""
        return self.explanation.map_kind.sums_to_probability


class DemoModel:
    """A self-explaining model that the page can show.

    Args:
        source: Model folder, timm name or Hub id of a `softcam_*` or `cape_*` model.
    """

    def __init__(self, source: str | Path) -> None:
        classifier = load_classifier(source)
        if not isinstance(classifier.model, SelfExplaining):
            raise ValueError(
                f"{source} is a vanilla classifier, which has no maps of its own: name a softcam_* or cape_* model, "
                "or make one with softcam_hub.convert and save it"
            )
        self.name = Path(source).name if Path(source) == Path(CAPE_LESIONS) else str(source)
        self.training = _describe_training(Path(source), classifier.labels)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = classifier.model.to(self.device)
        measure_on_first_use(self.model)
        self.vanilla = _find_vanilla(classifier, source)
        self.labels = classifier.labels
        self.kinds = tuple(kind.name for kind in self.model.head_class.map_kinds if kind.native)
        # Without a vanilla classifier FD-CAM needs one pass per channel, which takes half a minute.
        slow = () if self.vanilla else ("fd-cam",)
        methods = [name for name in DEFAULT_POST_HOC if name not in slow]
        explained = self.vanilla or classifier
        explained.model.to(self.device)
        multi_label = self.model.multi_label if explained.multi_label is None else explained.multi_label
        self.explainers = ClassifierWithExplainers(VANILLA, explained, methods, multi_label)

    @torch.no_grad()
    def explain(self, image: Image.Image, file: str = "") -> ExplainedImage:
        """Predict the classes of an RGB image, and explain the two most probable ones.

        Args:
            image: Picture in RGB.
            file: File name of the picture.
        """
        pixels = self.model.as_batch(image)
        probabilities = self.model.probabilities(self.model(pixels))[0].cpu()
        classes = probabilities.topk(min(2, len(self.labels))).indices.tolist()
        explanations = self._own_maps(pixels, classes)
        return ExplainedImage(self.name, file, self.labels, pixels, probabilities, explanations)

    def explain_classes(self, explained: ExplainedImage, classes: list[int]) -> ExplainedImage:
        """Explain other classes of the same picture."""
        return replace(explained, explanations=self._own_maps(explained.pixels, classes))

    def _own_maps(self, pixels: Tensor, classes: list[int]) -> dict[str, Explanation]:
        return {kind: self.model.explain(pixels, [classes], kind=kind) for kind in self.kinds}

    def post_hoc(self, explained: ExplainedImage) -> tuple[dict[str, Explanation], dict[str, str]]:
        """Explain the first chosen class by post-hoc methods.

        Returns:
            Method -> maps, with the class probability of the model that the method explains, and method ->
            reason why it is left out.
        """
        pixels, index = explained.pixels, explained.classes[0]
        probabilities = self.explainers.predict(pixels) if self.vanilla else explained.probabilities[None]
        classes = torch.tensor([[index]], device=self.device)
        activations = self.explainers.explained.record(pixels)
        explanations, reasons = {}, {}
        for name in self.explainers.names:
            try:
                maps = self.explainers.maps([name], activations, classes)[name].relu()
                grid = find_grid(name, self.explainers.explained, pixels, maps)
                explanations[name] = Explanation(maps, classes, probabilities[:, [index]], name, grid=grid)
            except (ValueError, ImportError) as error:
                reasons[name] = str(error)
        return explanations, reasons


def _find_vanilla(classifier: LoadedClassifier, source: str | Path) -> LoadedClassifier | None:
    """Load the vanilla classifier that training wrote beside the model, or turn the model back into one."""
    run = Path(source).expanduser().resolve().parent
    folders = [run / name for name in ("vanilla", "twin")]  # older runs called the folder `twin`
    beside = [folder for folder in folders if (folder / "config.json").is_file()]
    vanilla = load_classifier(beside[0]) if Path(source).is_dir() and beside else None
    if vanilla is not None and has_same_backbone(classifier.model, vanilla.model):
        vanilla.model.alignment = classifier.model.alignment
    return pair_models(classifier, vanilla).vanilla


def _describe_training(source: Path, labels: list[str]) -> str:
    """Say what a model was trained on, as far as its folder tells, and what other pictures get.

    Args:
        source: Model folder, timm name or Hub id of the model.
        labels: Names of all classes.
    """
    data = read_optional_mapping(source.expanduser() / METRICS).get("data")
    pictures = f" on {printable(str(data))}" if data else ""
    if data in VARIANTS:
        pictures += " (pictures that a program draws)"
    return (
        f"This model was trained{pictures} to tell apart {abbreviate(labels)}. "
        "Pictures of anything else get an answer too, but it means nothing."
    )
