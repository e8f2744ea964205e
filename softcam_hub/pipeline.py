"""Explain images with `pipeline("image-explanation")`: label, score, map and heat map of each class."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AutoModelForImageClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .models.alignment import Grid, sides_of
from .models.explanation import Explanation
from .models.image_size import ImageSize
from .models.inputs import as_batch, read_image

TASK = "image-explanation"


class ImageExplanationPipeline(Pipeline):
    """Predict the classes of images, and explain each prediction with a map.

        explain = pipeline("image-explanation", model="you/repo")
        explain("photo.jpg", top_k=2)[0]["heatmap"].save("why.png")

    Inputs are PIL images, paths, URLs or arrays (H, W, 3) of bytes, one or a list, and are read as in
    training. The image at a URL may have 64 MB and 50 million pixels, and its download may take 60 s.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(
        self,
        images: Any,
        *,
        top_k: int | None = None,
        classes: int | str | Sequence[int | str] | None = None,
        kind: str | None = None,
        size: ImageSize | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Any:
        """Explain one image or a list of them.

        Args:
            images: Image, path, URL or array, or a list of them.
            top_k: Number of most probable classes to explain, 1 by default.
            classes: Labels or indices of the classes to explain instead.
            kind: Kind of map: `softcam`, `cape`, `mu-cape` or `cam`.
            size: Side, or height and width, at which the network sees the images, in place of its own. The model's own
                preprocessing prepares them, whatever image processor the pipeline was given.
            timeout: Seconds that the download of a URL may take in all, in place of 60.
            **options: Options that every pipeline takes, such as `batch_size`.

        Returns:
            A list for each image, with a dictionary for each class: `label`, `score`, `map` (a tensor (H, W) at
            the resolution of the features) and `heatmap` (a PIL image of the map over the input of the model).
        """
        if isinstance(images, list | tuple) and not images:
            raise ValueError("there is no image to explain: expected an image or a list of images, got an empty list")
        options |= {"top_k": top_k, "classes": classes, "kind": kind, "size": size, "timeout": timeout}
        return super().__call__(images, **options)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        classes: int | str | Sequence[int | str] | None = None,
        kind: str | None = None,
        size: ImageSize | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide the options of a call among `preprocess`, `_forward` and `postprocess`."""
        if not hasattr(self.model, "explain"):  # a model with code from the Hub is of a class of its own
            raise ValueError(
                f"a {type(self.model).__name__} has no maps to explain its predictions with: expected a SoftCAM or "
                "CAPE model, such as SoftCAMForImageClassification.from_pretrained(folder)"
            )
        if not isinstance(classes, int | str | None):
            classes = [list(classes)]  # the same classes for every image of the batch
        return (
            _given(size=size, timeout=timeout),
            _given(top_k=top_k, classes=classes, kind=kind, size=size),
            _given(kind=kind),
        )

    def preprocess(self, image: Any, size: ImageSize | None = None, timeout: float | None = None) -> dict[str, Tensor]:
        """Read one image, and transform it to the input of the model."""
        picture = read_image(image, timeout)
        if size is not None:
            return {"images": as_batch(picture, self.model.preprocessing, size)}
        return {"images": self.image_processor(images=picture)["pixel_values"]}

    def _forward(self, inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
        explanation = self.model.explain(inputs["images"], **options)
        return {name: getattr(explanation, name) for name in ("maps", "classes", "probabilities", "pixels")}

    def postprocess(self, outputs: dict[str, Tensor], kind: str | None = None) -> list[dict[str, Any]]:
        """Return a dictionary for each explained class of one image."""
        kind = self.model.head_class.check_kind(kind)
        grid = Grid(sides_of(outputs["pixels"]), sides_of(outputs["maps"]), self.model.alignment)
        explanation = Explanation(**outputs, kind=kind, names=self.model.labels, grid=grid)
        return [
            {
                "label": label,
                "score": float(explanation.probabilities[0, rank]),
                "map": explanation.maps[0, rank],
                "heatmap": explanation.overlay(rank=rank),
            }
            for rank, label in enumerate(explanation.labels[0])
        ]


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that a caller has given, which are not None."""
    return {name: value for name, value in options.items() if value is not None}


def register() -> None:
    """Register the task with `transformers.pipeline`."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, ImageExplanationPipeline, pt_model=AutoModelForImageClassification, type="image"
        )
        PIPELINE_REGISTRY.supported_tasks[TASK]["default"] = _NoDefaultModel()


class _NoDefaultModel(dict[str, Any]):
    """Raise ValueError with a sentence where transformers looks for a default model: there is none."""

    def __contains__(self, _: object) -> bool:
        raise ValueError(
            f"pipeline({TASK!r}) needs a model: name a model folder or a Hub id with model=..., such as "
            "model=softcam_hub.CAPE_LESIONS, the small model that comes with the package"
        )
