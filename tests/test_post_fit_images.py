"""Images that CAPE is post-fitted to: in every form that users have them, and those that are held out."""

import numpy as np
import pytest
import torch
from datasets import Dataset as Table
from helpers.post_fit import FAST, cape, largest_difference, noise, states
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from softcam_hub import post_fit
from softcam_hub.training.head_fit import HeadFit

pytestmark = pytest.mark.filterwarnings("ignore::softcam_hub.models.weights.OffTheShelfWarning")


class Samples(Dataset):
    """A data set as users of torch write it: with a length, and no end of its own."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index % len(self)], 0


def pictures(count=9):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of pictures, some of them in a folder within."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "b").mkdir()
    for index, picture in enumerate(pictures()):
        picture.save(folder / ("b" if index > 4 else ".") / f"{index}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


SOURCES = {
    "pictures": lambda model, files: pictures(),
    "folder": lambda model, files: str(files),
    "paths": lambda model, files: [*sorted(files.glob("*.png")), *sorted((files / "b").glob("*.png"))],
    "tensor": lambda model, files: model.as_batch(pictures()),
    "image processor": lambda model, files: {"pixel_values": model.as_batch(pictures())},
    "loader of pairs": lambda model, files: DataLoader(
        TensorDataset(model.as_batch(pictures()), torch.zeros(9, dtype=torch.int64)), 2
    ),
    "loader of single pairs": lambda model, files: DataLoader(
        TensorDataset(model.as_batch(pictures()), torch.zeros(9, dtype=torch.int64)), batch_size=None
    ),
    "list of pairs": lambda model, files: [(model.as_batch(pictures()), torch.zeros(9))],
    "generator of dictionaries": lambda model, files: (
        {"pixel_values": batch, "labels": None} for batch in model.as_batch(pictures()).split(4)
    ),
    "table": lambda model, files: Table.from_dict({"image": pictures(), "label": [0] * 9}),
    "column": lambda model, files: Table.from_dict({"image": pictures(), "label": [0] * 9})["image"],
    "batches of a table": lambda model, files: Table.from_dict({"image": pictures()}).iter(4),
    "data set of torch": lambda model, files: Samples(model.as_batch(pictures())),
    "lists of pictures": lambda model, files: [pictures()[:5], pictures()[5:]],
    "batches with an empty one": lambda model, files: [noise(0, 160), *model.as_batch(pictures()).split(5)],
}


@pytest.fixture(scope="module")
def fitted_to_pictures():
    model = cape()
    return post_fit(model, [(model.as_batch(pictures()),)], **FAST), states(model)


@pytest.mark.parametrize("source", SOURCES)
def test_images_in_every_form_give_the_same(source, files, fitted_to_pictures):
    model = cape()
    result = post_fit(model, SOURCES[source](model, files), **FAST)
    expected, weights_expected = fitted_to_pictures
    assert (result.images, result.held_out) == (expected.images, expected.held_out) == (8, 1)
    assert largest_difference(states(model), weights_expected) < 1e-5


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(1, 0.1, (1, 0)), (5, 0.0, (5, 0)), (20, 0.25, (15, 5)), (2, 0.99, (1, 1))]
)
def test_held_out_images_are_not_learnt_from(count, share, expected, monkeypatch):
    learnt, compared = [], []
    run, compare = HeadFit.run, HeadFit.compare
    monkeypatch.setattr(HeadFit, "run", lambda self, images, *rest: learnt.append(images) or run(self, images, *rest))
    monkeypatch.setattr(
        HeadFit, "compare", lambda self, images, *rest: compared.append(images) or compare(self, images, *rest)
    )
    result = post_fit(cape(), noise(count), hold_out=share, **FAST)
    assert (result.images, result.held_out) == expected
    assert len(learnt[0]) == expected[0]
    assert compared[0] == compared[1]
    assert sorted({*learnt[0], *compared[0]}) == list(range(count))
    assert not expected[1] or not set(learnt[0]) & set(compared[0])
