"""A model as a person looks at it: pictures in; named predictions, its own maps and post-hoc maps out.

- Post-hoc maps explain the model's *vanilla twin*: the folder `vanilla` beside the model's (`twin` in older
  runs), or the classifier that the model can be turned back into. Where there is none, they explain the model's own
  logits, through their gradients.
- A post-hoc method that does not fit the model is left out, with the reason; that may depend on the picture.
"""

from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ..evaluation.models import DEFAULT_POST_HOC, Explained, pair_up
from ..explainers.methods import own_map_kinds
from ..figures import denormalise
from ..loading import LoadedClassifier, load_classifier
from ..models.explanation import Explanation
from ..models.self_explaining import SelfExplaining


class Viewer:
    """A model of ours, ready to be asked about pictures.

    Args:
        source: model folder, timm name or Hub id.
    """

    def __init__(self, source: str | Path) -> None:
        classifier = load_classifier(source)
        if not isinstance(classifier.model, SelfExplaining):
            raise ValueError(
                f"{source} is a black box, which has no maps of its own: name a softcam_* or cape_* model, or make one "
                "with softcam_hub.convert and save it"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.twin = _find_twin(classifier, source)
        self.model = classifier.model.to(self.device)
        self.config = classifier.preprocessing
        self.transform = create_transform(**self.config)
        self.labels = classifier.labels
        self.kinds = tuple(kind for kind in self.model.head.kinds if kind in own_map_kinds())
        names = (
            DEFAULT_POST_HOC if self.twin else [name for name in DEFAULT_POST_HOC if name != "fd-cam"]
        )  # one pass per channel: half a minute
        explained = self.twin or classifier
        explained.model.to(self.device)
        multi_label = self.model.multi_label if explained.multi_label is None else explained.multi_label
        self.explained = Explained("twin", explained, names, multi_label)

    def see(self, image: Image.Image) -> Tensor:
        """The picture as the model takes it, (1, 3, H, W)."""
        return self.transform(image)[None].to(self.device)

    def seen(self, pixels: Tensor) -> Image.Image:
        """And back: what the model saw of the picture."""
        return denormalise(pixels[0], self.config["mean"], self.config["std"])

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Of all classes, (C,)."""
        logits = getattr(output := self.model(pixels), "logits", output)
        return self.model.probabilities(logits)[0].cpu()

    def explain(self, pixels: Tensor, classes: list[int]) -> dict[str, Explanation]:
        """The model's own maps of the classes, by their kind."""
        return {kind: self.model.explain(pixels, [classes], kind=kind) for kind in self.kinds}

    def post_hoc(self, pixels: Tensor, index: int) -> tuple[dict[str, Explanation], dict[str, str]]:
        """Maps of one class by post-hoc methods, and why the others are left out.

        The probabilities with the maps are what the model that they explain gives the class.
        """
        every = self.explained.predict(pixels) if self.twin else self.probabilities(pixels)[None]
        classes = torch.tensor([[index]], device=self.device)
        activations = self.explained.explained_model.record(pixels)
        found, left_out = {}, {}
        for name in self.explained.names:
            try:
                maps = self.explained.maps([name], activations, classes)[name].relu()
                found[name] = Explanation(maps, classes, every[:, [index]], name)
            except (ValueError, ImportError) as error:
                left_out[name] = str(error)
        return found, left_out


def _find_twin(classifier: LoadedClassifier, source: str | Path) -> LoadedClassifier | None:
    """Load the vanilla classifier that training wrote beside the model, or turn the model back into one."""
    run = Path(source).expanduser().resolve().parent
    folders = [run / name for name in ("vanilla", "twin")]  # training called the folder `twin` before
    beside = [folder for folder in folders if (folder / "config.json").is_file()]
    twin = load_classifier(beside[0]) if Path(source).is_dir() and beside else None
    return pair_up(classifier, twin).twin
