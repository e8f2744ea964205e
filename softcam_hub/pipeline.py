"""`pipeline("image-explanation")`: label, score, map and heat-map image for the classes of each image."""

import base64
import os
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .data.downloads import download
from .data.images import UnreadableImage, decode, name_image, open_local, read_user_image, to_rgb, turn_upright
from .data.text import printable
from .figures import denormalise, overlay

TASK = "image-explanation"

EXPECTED = "a PIL image, an array (H, W, 3) of bytes, the path of a file, an http(s) URL or a base64 string"

LONGEST = 200
"""Characters of an unknown text that a message shows."""


class ImageExplanationPipeline(Pipeline):
    """A prediction with its evidence.

        explain = pipeline("image-explanation", model="you/repo")
        explain("photo.jpg", top_k=2)[0]["heatmap"].save("why.png")

    Inputs are PIL images, paths, URLs or (H, W, 3) arrays of bytes, one or a list, read as in training.
    A URL may give 64 MB and 50 million pixels, and take 60 s.

    Args:
        top_k: how many of the most probable classes to explain; 1 by default.
        classes: labels or indices to explain instead.
        kind: the kind of map (`softcam`, `cape`, `mu-cape`, `cam`).
        timeout: Seconds that the download of a URL may take in all, in place of 60.

    Returns:
        For each image a list with, per class, `label`, `score`, `map` (a tensor (H, W) at its own resolution) and
        `heatmap` (the map over what the model saw of the image, a PIL image).
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(self, images: Any, **options: Any) -> Any:
        """Explain one image or a list of them, as the class describes."""
        if isinstance(images, list | tuple) and not images:
            raise ValueError("there is no image to explain: expected an image or a list of images, got an empty list")
        return super().__call__(images, **options)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        classes: int | str | list[int | str] | None = None,
        kind: str | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"top_k": top_k, "classes": None if classes is None else self._indices(classes), "kind": kind}
        forward = {name: value for name, value in given.items() if value is not None}
        return {} if timeout is None else {"timeout": timeout}, forward, {}

    def _indices(self, classes: int | str | list[int | str]) -> list[int]:
        """Class indices of labels or indices."""
        named = [classes] if isinstance(classes, int | str) else list(classes)
        known = self.model.config.label2id or {}
        unknown = [name for name in named if isinstance(name, str) and name not in known]
        if unknown:
            labels = list(known)
            listed = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
            raise ValueError(f"unknown class {unknown[0]!r}: this model's {len(labels)} labels are {listed}")
        return [known[name] if isinstance(name, str) else name for name in named]

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Tensor]:
        inputs = self.image_processor(images=as_picture(image, timeout), return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"].to(self.dtype)}

    def _forward(self, inputs: dict[str, Tensor], top_k: int = 1, **options: Any) -> dict[str, Tensor]:
        if "classes" in options:
            options["classes"] = [options["classes"]]  # the same for every image of the batch
        images = inputs["pixel_values"]
        explanation = self.model.explain(images, top_k=top_k, **options)
        return {
            "images": images,
            "maps": explanation.maps,
            "classes": explanation.classes,
            "probabilities": explanation.probabilities,
            "heatmaps": explanation.heatmaps(tuple(images.shape[-2:])),
        }

    def postprocess(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        data = self.image_processor.data_config
        seen = denormalise(outputs["images"][0], data["mean"], data["std"])
        ranks = range(outputs["classes"].shape[1])
        return [
            {
                "label": self.model.config.id2label[int(outputs["classes"][0, rank])],
                "score": float(outputs["probabilities"][0, rank]),
                "map": outputs["maps"][0, rank],
                "heatmap": overlay(seen, outputs["heatmaps"][0, rank]),
            }
            for rank in ranks
        ]


def as_picture(image: Any, timeout: float | None) -> Image.Image:
    """Read what a user may pass for an image, as RGB.

    Args:
        image: PIL image, array of bytes, path, http(s) URL, or base64 text with or without "data:image/png;base64,".
        timeout: Seconds that a download may take in all; by default `softcam_hub.data.downloads.MAX_SECONDS`.
    """
    size = image.shape[:2] if isinstance(image, np.ndarray) else image.size if isinstance(image, Image.Image) else ()
    if 0 in size or (isinstance(image, str | bytes) and not image):
        raise ValueError("the image is empty: expected a picture of at least one pixel, or the path or URL of one")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"expected an image array of bytes (H, W, 3), got {image.dtype} of shape {image.shape}: "
                "scale it to 0..255 and convert with .astype('uint8')"
            )
        return to_rgb(Image.fromarray(image))
    if isinstance(image, Image.Image):
        with name_image("the PIL image"):
            return to_rgb(turn_upright(image))
    if isinstance(image, os.PathLike) or (isinstance(image, str) and os.path.isfile(image)):
        with name_image(printable(os.fspath(image))), open_local(image) as file:
            return to_rgb(decode(file))
    if isinstance(image, str):
        return _picture_of_text(image, timeout)
    raise TypeError(f"expected {EXPECTED}, got {type(image).__name__}")


def _picture_of_text(text: str, timeout: float | None) -> Image.Image:
    """Read a URL, or an image written as base64."""
    if text.lower().startswith(("http://", "https://")):
        return read_user_image(download(text, seconds=timeout), text).image
    try:
        content = base64.b64decode("".join(text.rpartition("base64,")[2].split()), validate=True)
        return read_user_image(content, "the base64 image").image
    except ValueError as error:
        if isinstance(error, UnreadableImage) and text.startswith("data:"):
            raise
        # a file name of a few letters is base64 too, of no image
        shown = printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")
        raise UnreadableImage(f"{shown} cannot be read: expected {EXPECTED}.") from error


def register() -> None:
    """Make the task known to `transformers.pipeline`."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, ImageExplanationPipeline, pt_model=AutoModelForImageClassification, type="image"
        )
        PIPELINE_REGISTRY.supported_tasks[TASK]["default"] = _NoDefaultModel()


class _NoDefaultModel(dict[str, Any]):
    """The default models of the task: there are none, and transformers is told so in words when it looks for one."""

    def __contains__(self, _: object) -> bool:
        raise ValueError(
            f"pipeline({TASK!r}) needs a model: name a model folder or a Hub id with model=..., such as "
            "model=softcam_hub.CAPE_LESIONS, the small model that comes with the package"
        )
