"""Images in every form in which people hold them: one image as RGB, or any number of them as the batch of a model.

- Tensors of floating-point numbers are inputs of a model already, normalised by the caller. The same holds for the
  output of an image processor.
- Everything else is a picture, which the model's own preprocessing turns into an input: PIL images, arrays, bytes,
  files and URLs. Only `images.py` decodes them, and only `downloads.py` fetches them.
"""

import base64
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from .downloads import download
from .image_size import ImageSize, at_size, resize
from .images import UnreadableImage, decode, name_image, open_local, read_user_image, to_rgb, turn_upright
from .text import abbreviate, printable

ACCEPTED = "a PIL image, an array (H, W, 3), the path of a file, an http(s) URL, a base64 string or encoded bytes"
"""The forms of one picture, as messages list them."""

PIXELS = "pixel_values"
"""Key of the images in the output of an image processor."""

LARGEST_NORMALISED = 50.0
"""Size of a value beyond which an image is taken for one that nobody has normalised; bytes reach 255."""

MAX_SHOWN_CHARACTERS = 200
"""Characters of an unknown text that a message shows."""

ImageInput: TypeAlias = (
    Tensor | np.ndarray | Image.Image | str | os.PathLike[str] | bytes | Mapping[str, Any] | Sequence[Any]
)
"""Images as `as_batch` takes them."""


def as_batch(images: ImageInput, preprocessing: Mapping[str, Any], size: ImageSize | None = None) -> Tensor:
    """Return images in any accepted form as one batch (B, C, H, W), or raise an error that says what was expected.

    Args:
        images: A batch (B, C, H, W) or an image (C, H, W) as a tensor, the output of an image processor, a picture in
            any form that `read_image` takes, or a list of these.
        preprocessing: Preprocessing of the model, as timm's `create_transform` takes it.
        size: Side, or height and width, of the batch in place of the model's own. Pictures are prepared for it, and
            tensors are resized to it.
    """
    if size is not None:
        preprocessing = at_size(preprocessing, size)
    if isinstance(images, Mapping):
        return _resized(_processed(images), preprocessing, size)
    if isinstance(images, Tensor) and images.dtype == torch.uint8:  # a picture, as torchvision reads it
        images = _as_array(images)
    if isinstance(images, Tensor):
        return _resized(images[None] if images.ndim == 3 else images, preprocessing, size)
    if (isinstance(images, Sequence) and not isinstance(images, str | bytes)) or (
        isinstance(images, np.ndarray) and images.ndim == 4
    ):
        if not len(images):
            raise ValueError("there is no image to explain: expected an image or a list of images, got an empty list")
        pictures: list[Any] = list(images)
        return _joined([as_batch(picture, preprocessing, size) for picture in pictures])
    channels = preprocessing["input_size"][0]
    if channels != 3:
        raise ValueError(
            f"pictures are read as RGB, but this model takes images with {channels} channel"
            f"{'s' if channels > 1 else ''}: pass a tensor (B, {channels}, H, W), normalised as in training"
        )
    return create_transform(**preprocessing)(read_image(images))[None]


def _resized(images: Tensor, preprocessing: Mapping[str, Any], size: ImageSize | None) -> Tensor:
    """Resize images of a model where a size is asked for; what is no image of it is left for a later check."""
    channels, height, width = preprocessing["input_size"]
    if size is None or images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
        return images
    return resize(images, (height, width))


def warn_of_values(images: Tensor, preprocessing: Mapping[str, Any], stacklevel: int = 5) -> None:
    """Warn of images that do not look normalised: a network gives wrong predictions for them, and no error.

    Args:
        images: Images as the network gets them.
        preprocessing: Mean and standard deviation of the model's images, among others.
        stacklevel: Number of calls to the line that the warning names. The default is for `explain()`, which is wrapped
            by no_grad.
    """
    if not images.numel():
        return
    low, high = float(images.amin()), float(images.amax())
    is_normalised = any(preprocessing["mean"]) or any(value != 1 for value in preprocessing["std"])
    if is_normalised and 0 <= low < high <= 1:
        warnings.warn(
            "all values of the images lie between 0 and 1, as before the normalisation: if they are not normalised, "
            "use Normalize with the model's mean and std, or pass the pictures themselves",
            stacklevel=stacklevel,
        )
    if max(-low, high) > LARGEST_NORMALISED:
        warnings.warn(
            f"the images have values from {low:.4g} to {high:.4g}, where normalised images have single digits: "
            "normalise them as in training, or pass the pictures themselves, as uint8 tensors or PIL images",
            stacklevel=stacklevel,
        )


def _as_array(picture: Tensor) -> np.ndarray:
    """Return pictures (..., C, H, W) of bytes as an array (..., H, W, C); a picture (H, W) stays as it is."""
    if picture.ndim < 3:
        return picture.cpu().numpy()
    if picture.shape[-3] not in (1, 3, 4) and picture.shape[-1] in (1, 3, 4):
        raise ValueError(
            f"expected a picture as a uint8 tensor (C, H, W), got shape {tuple(picture.shape)}: move the channels to "
            "the front with .movedim(-1, -3)"
        )
    return picture.cpu().movedim(-3, -1).numpy()


def _processed(output: Mapping[str, Any]) -> Tensor:
    """Return the images in the output of an image processor."""
    if PIXELS not in output:
        raise ValueError(
            f"expected the output of an image processor, with {PIXELS!r}, got the keys "
            f"{abbreviate(sorted(map(str, output)))}: pass the image itself, such as row['image']"
        )
    images = output[PIXELS]
    if isinstance(images, Sequence) and any(isinstance(image, Tensor) for image in images):
        images = torch.stack(list(images))
    images = images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
    return images[None] if images.ndim == 3 else images


def _joined(batches: list[Tensor]) -> Tensor:
    """Join batches (b, C, H, W) into one, or raise ValueError where their images differ in size."""
    shapes = {tuple(batch.shape[1:]) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            f"the images of a list must have one size after preprocessing, got {sorted(shapes)}: resize the tensors, "
            "or pass pictures, which the model's own preprocessing resizes"
        )
    return torch.cat([batch.to(batches[0]) for batch in batches])


def read_image(image: Any, timeout: float | None = None) -> Image.Image:
    """Read a picture in any of the accepted forms as RGB.

    Args:
        image: PIL image, array (H, W), (H, W, 3) or (H, W, 4) of bytes or of numbers in [0, 1], path, http(s) URL,
            base64 text with or without "data:image/png;base64,", or the bytes of an encoded image.
        timeout: Seconds that a download may take in all. `downloads.MAX_SECONDS` by default.
    """
    _check_not_empty(image)
    if isinstance(image, np.ndarray):
        return to_rgb(Image.fromarray(_as_bytes(image)))
    if isinstance(image, Image.Image):
        with name_image("the PIL image"):
            return to_rgb(turn_upright(image))
    if isinstance(image, bytes):
        return read_user_image(image, "the image in bytes").image
    if isinstance(image, str | os.PathLike) and not os.path.isfile(image):
        # os.path takes a text of any length, and Path does not
        image = os.path.expanduser(image) if isinstance(image, str) else Path(image).expanduser()
    if isinstance(image, str | os.PathLike) and os.path.isdir(image):
        raise UnreadableImage(f"{printable(os.fspath(image))} is a folder: pass the paths of its images, as a list")
    if isinstance(image, os.PathLike) or (isinstance(image, str) and os.path.isfile(image)):
        with name_image(printable(os.fspath(image))), open_local(image) as file:
            return to_rgb(decode(file))
    if isinstance(image, str):
        return _read_text(image, timeout)
    raise TypeError(f"expected {ACCEPTED}, got {type(image).__name__}")


def _check_not_empty(image: Any) -> None:
    """Raise ValueError for an image without pixels, and for an empty text."""
    size = image.shape[:2] if isinstance(image, np.ndarray) else image.size if isinstance(image, Image.Image) else ()
    if 0 in size or (isinstance(image, str | bytes) and not image):
        raise ValueError("the image is empty: expected an image of at least one pixel, or the path or URL of one")


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """Return an array of a picture as bytes, (H, W), (H, W, 3) or (H, W, 4)."""
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        hint = ""
        if array.ndim == 3 and shape[0] in (1, 3, 4):
            hint = ": move its channels to the end with .transpose(1, 2, 0), or pass a normalised image as a tensor"
        raise ValueError(f"expected an image array (H, W), (H, W, 3) or (H, W, 4), got shape {shape}{hint}")
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"expected an image array of bytes, or of floating-point numbers in [0, 1], got {array.dtype}: scale it "
            "to 0..255 and convert it with .astype('uint8')"
        )
    low, high = float(array.min()), float(array.max())  # both NaN where one value is
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"expected floating-point numbers of an image array in [0, 1], got {low:g} to {high:g}: scale them, or "
            "pass a normalised image as a tensor (3, H, W)"
        )
    return (array * 255).round().astype(np.uint8)


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
        raise UnreadableImage(
            f"{printable(beginning)} cannot be read: there is no such file, expected {ACCEPTED}."
        ) from error
