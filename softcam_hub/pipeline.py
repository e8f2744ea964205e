"""Explain images with `pipeline("image-explanation")`: label, score, map and heat map of each class."""

import base64
import os
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .figures import denormalise, overlay
from .models.downloads import download
from .models.images import UnreadableImage, decode, name_image, open_local, read_user_image, to_rgb, turn_upright
from .models.text import abbreviate, printable

TASK = "image-explanation"

ACCEPTED_INPUTS = "a PIL image, an array (H, W, 3) of bytes, the path of a file, an http(s) URL or a base64 string"

MAX_SHOWN_CHARACTERS = 200
"""Characters of an unknown text that a message shows."""


class ImageExplanationPipeline(Pipeline):
    """Predict the classes of images, and explain each prediction with a map.

        explain = pipeline("image-explanation", model="you/repo")
        explain("photo.jpg", top_k=2)[0]["heatmap"].save("why.png")

    Inputs are PIL images, paths, URLs or arrays (H, W, 3) of bytes, one or a list, and are read as in
    training. The image at a URL may have 64 MB and 50 million pixels, and its download may take 60 s.

    Args:
        top_k: Number of most probable classes to explain, 1 by default.
        classes: Labels or indices of the classes to explain instead.
        kind: Kind of map: `softcam`, `cape`, `mu-cape` or `cam`.
        timeout: Seconds that the download of a URL may take in all, in place of 60.

    Returns:
        A list for each image, with a dictionary for each class: `label`, `score`, `map` (a tensor (H, W) at
        the resolution of the features) and `heatmap` (a PIL image of the map over the input of the model).
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
        """Divide the options of a call among `preprocess`, `_forward` and `postprocess`."""
        indices = None if classes is None else self._class_indices(classes)
        options = {"top_k": top_k, "classes": indices, "kind": kind}
        forward_options = {name: value for name, value in options.items() if value is not None}
        return {} if timeout is None else {"timeout": timeout}, forward_options, {}

    def _class_indices(self, classes: int | str | list[int | str]) -> list[int]:
        """Return the class indices of labels or indices."""
        label2id = self.model.config.label2id or {}
        names = [classes] if isinstance(classes, int | str) else list(classes)
        for name in names:
            if isinstance(name, str) and name not in label2id:
                labels = abbreviate(list(label2id), 10)
                raise ValueError(f"unknown class {name!r}: the labels of this model are {labels}")
        return [label2id[name] if isinstance(name, str) else name for name in names]

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Tensor]:
        """Read one image, and transform it to the input of the model."""
        inputs = self.image_processor(images=read_input(image, timeout), return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"].to(self.dtype)}

    def _forward(self, inputs: dict[str, Tensor], top_k: int = 1, **options: Any) -> dict[str, Tensor]:
        if "classes" in options:
            options["classes"] = [options["classes"]]  # the same classes for every image of the batch
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
        """Return a dictionary for each explained class of one image."""
        preprocessing = self.image_processor.data_config
        model_input = denormalise(outputs["images"][0], preprocessing["mean"], preprocessing["std"])
        return [
            {
                "label": self.model.config.id2label[int(outputs["classes"][0, rank])],
                "score": float(outputs["probabilities"][0, rank]),
                "map": outputs["maps"][0, rank],
                "heatmap": overlay(model_input, outputs["heatmaps"][0, rank]),
            }
            for rank in range(outputs["classes"].shape[1])
        ]


def read_input(image: Any, timeout: float | None) -> Image.Image:
    """Read an image in any of the accepted forms as RGB.

    Args:
        image: PIL image, array of bytes, path, http(s) URL, or base64 text with or without
            "data:image/png;base64,".
        timeout: Seconds that a download may take in all. `softcam_hub.models.downloads.MAX_SECONDS` by default.
    """
    _check_not_empty(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"expected an image array of bytes (H, W, 3), got {image.dtype} of shape {image.shape}: "
                "scale it to 0..255 and convert it with .astype('uint8')"
            )
        return to_rgb(Image.fromarray(image))
    if isinstance(image, Image.Image):
        with name_image("the PIL image"):
            return to_rgb(turn_upright(image))
    if isinstance(image, os.PathLike) or (isinstance(image, str) and os.path.isfile(image)):
        with name_image(printable(os.fspath(image))), open_local(image) as file:
            return to_rgb(decode(file))
    if isinstance(image, str):
        return _read_text(image, timeout)
    raise TypeError(f"expected {ACCEPTED_INPUTS}, got {type(image).__name__}")


def _check_not_empty(image: Any) -> None:
    """Raise ValueError for an image without pixels, and for an empty text."""
    size = image.shape[:2] if isinstance(image, np.ndarray) else image.size if isinstance(image, Image.Image) else ()
    if 0 in size or (isinstance(image, str | bytes) and not image):
        raise ValueError("the image is empty: expected an image of at least one pixel, or the path or URL of one")


def _read_text(text: str, timeout: float | None) -> Image.Image:
    """Read the image at a URL, or an image written as base64."""
    if text.lower().startswith(("http://", "https://")):
        return read_user_image(download(text, seconds=timeout), text).image
    try:
        content = base64.b64decode("".join(text.rpartition("base64,")[2].split()), validate=True)
        return read_user_image(content, "the base64 image").image
    except ValueError as error:
        if isinstance(error, UnreadableImage) and text.startswith("data:"):
            raise
        # The name of a missing file may be valid base64 too, so the message covers both.
        beginning = text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."
        raise UnreadableImage(f"{printable(beginning)} cannot be read: expected {ACCEPTED_INPUTS}.") from error


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
