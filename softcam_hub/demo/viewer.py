"""A model as a person looks at it: pictures in; named predictions, its own maps and post-hoc maps out.

- Post-hoc maps explain the model's *vanilla twin*: the folder `vanilla` beside the model's (`twin` in older
  runs), or the classifier that the model can be turned back into. Where there is none, they explain the model's own
  logits, through their gradients.
- A post-hoc method that does not fit the model is left out, with the reason; that may depend on the picture.
"""

from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn

from ..evaluation.models import FAST, NATIVE, Explained, load_classifier, pair_up
from ..evaluation.placement import distinct
from ..figures import denormalise
from ..models.explanation import Explanation
from ..models.label_kind import is_multi_label
from ..models.self_explaining import SelfExplaining


class Viewer:
    """A model of ours, ready to be asked about pictures.

    Args:
        source: model folder, timm name or Hub id.
    """

    def __init__(self, source: str | Path) -> None:
        classifier = load_classifier(source)
        if not isinstance(classifier, SelfExplaining):
            raise ValueError(
                f"{source} is a black box, which has no maps of its own: name a softcam_* or cape_* model, or make one "
                "with softcam_hub.convert and save it"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.twin = _find_twin(classifier, source)
        self.model = classifier.to(self.device)
        self.config = resolve_data_config({}, pretrained_cfg=dict(classifier.pretrained_cfg))
        self.transform = create_transform(**self.config)
        self.labels = labels_of(self.model)
        self.kinds = tuple(kind for kind in self.model.head.kinds if kind in NATIVE)
        names = (
            FAST if self.twin else [name for name in FAST if name != "fd-cam"]
        )  # one pass per channel: half a minute
        asked = (self.twin or self.model).to(self.device)
        several = is_multi_label(asked, default=classifier.multi_label)
        self.explained = Explained("twin", asked, names, several)

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
        recording = self.explained.subject.record(pixels).of(classes)
        found, left_out = {}, {}
        for name in self.explained.names:
            try:
                maps = self.explained.maps([name], recording, classes)[name].relu()
                found[name] = Explanation(maps, classes, every[:, [index]], name)
            except (ValueError, ImportError) as error:
                left_out[name] = str(error)
        return found, left_out


def _find_twin(model: nn.Module, source: str | Path) -> nn.Module | None:
    """Load the vanilla classifier that training wrote beside the model, or turn the model back into one."""
    run = Path(source).expanduser().resolve().parent
    folders = [run / name for name in ("vanilla", "twin")]  # training called the folder `twin` before
    beside = [folder for folder in folders if (folder / "config.json").is_file()]
    twin = load_classifier(beside[0]) if Path(source).is_dir() and beside else None
    return pair_up(model, twin).twin


def labels_of(model: nn.Module) -> list[str]:
    """Different names of the classes: the model's own, those of ImageNet, or numbers."""
    names = model.pretrained_cfg.get("label_names")
    if names is None and (subset := infer_imagenet_subset(model)):
        info = ImageNetInfo(subset)
        names = [info.index_to_description(index) for index in range(model.num_classes)]
    names = names if names is not None else [str(index) for index in range(model.num_classes)]
    return list(distinct(dict(enumerate(names))).values())
