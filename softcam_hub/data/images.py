"""What a `DataLoader` reads: samples {"pixel_values", "labels", "index"[, "mask"]} from `Rows`.

- In training a sample is asked for as `(epoch, index)`, and its augmentation is drawn from (seed, epoch, index) alone:
  the same for any number of workers and processes, for any batch size, and after a resume.
- Augmentation draws from torch, `random` and NumPy, as timm does; all three are put back afterwards, so that dropout in
  the same process does not notice.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .rows import Rows

Sample = dict[str, Any]
Transform = Callable[[Image.Image], Tensor]


@contextmanager
def drawn_from(*numbers: int) -> Iterator[None]:
    """Random numbers of torch (CPU), `random` and NumPy follow from `numbers` inside the `with`; as before after it."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    seeds = np.random.SeedSequence(numbers).generate_state(3)
    # not torch.manual_seed, which would reseed every accelerator too
    torch.default_generator.manual_seed(int(seeds[0]))
    random.seed(int(seeds[1]))
    np.random.seed(seeds[2])
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def as_label(label: np.ndarray) -> Tensor:
    """() int64, or multi-hot (C,) float32."""
    return torch.as_tensor(label, dtype=torch.float32 if np.ndim(label) else torch.int64)


class Images(Dataset):
    """The samples of a split: `images[index]` in evaluation, `images[epoch, index]` in training.

    Args:
        rows: a split.
        transform: image -> (3, H, W).
        seed: of the augmentation; `None` in evaluation.
        masks: transform of masks, mask -> (H, W) booleans (`mask_transform`); each sample then has a "mask", which is
            false everywhere for an image without ground truth.
    """

    def __init__(
        self,
        rows: Rows,
        transform: Transform,
        seed: int | None = None,
        masks: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        if masks and not rows.has_masks:
            raise ValueError(f"split {rows.split!r} has neither masks nor boxes: leave masks out")
        if masks and seed is not None:
            raise ValueError("masks follow the evaluation transform, not the augmentation: leave masks or seed out")
        self.rows, self.transform, self.seed, self.masks = rows, transform, seed, masks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple | list) else (None, key)
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index}: split {self.rows.split!r} has {len(self)}")
        sample = {"labels": as_label(self.rows.labels[index]), "index": int(index)}
        if self.masks:
            image, mask = self.rows.image_and_mask(index)
            return {
                "pixel_values": self.transform(image),
                **sample,
                "mask": self.masks(mask or Image.new("L", image.size)),
            }
        image = self.rows.image(index)
        if epoch is None:
            return {"pixel_values": self.transform(image), **sample}
        if self.seed is None:
            raise ValueError(f"image {index} was asked for in epoch {epoch}, for which Images needs a seed")
        with drawn_from(self.seed, epoch, index):
            return {"pixel_values": self.transform(image), **sample}
