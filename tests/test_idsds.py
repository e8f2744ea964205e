"""IDSDS: the measure against a transcription of the published protocol, the augmentation that goes with it, and both
in a training run and in a benchmark."""

import logging

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from helpers.benchmark import DATA, prepare_split, save_models, vanilla_model
from helpers.data import PREPROCESSING
from helpers.training import cut_off_at, equal, train, weights
from PIL import Image
from scipy.stats import spearmanr

from softcam_hub import create_explainer
from softcam_hub.data import load_lesions
from softcam_hub.data.columns import Columns
from softcam_hub.data.config import AugmentationConfig
from softcam_hub.data.samples import ImageDataset, Samples
from softcam_hub.data.transforms import DeleteCell, make_transforms
from softcam_hub.evaluation import benchmark, measure
from softcam_hub.evaluation.deletion_training import has_learnt_deletions
from softcam_hub.explanation_scores.idsds import cell_drops, cell_means, idsds
from softcam_hub.explanation_scores.maps import grid_cells

FIRST = torch.zeros(1, dtype=torch.long)


def linear(weights):
    """A model whose first logit is a weighted sum of the pixels."""
    return lambda images: torch.stack([(weights * images).sum(dim=(1, 2, 3)), torch.zeros(len(images))], dim=1)


def published(model, images, maps, labels):
    """The protocol of the paper, one image and one cell at a time, for sides that 4 divides."""
    scores = []
    for image, attribution, label in zip(images, maps, labels, strict=True):
        height, width = (length // 4 for length in image.shape[-2:])
        before, sums, drops = float(model(image[None])[0, label]), [], []
        for row in range(4):
            for column in range(4):
                cell = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
                hidden = image.clone()
                hidden[:, cell[0], cell[1]] = 0
                sums.append(float(attribution[cell].sum()))
                drops.append(before - float(model(hidden[None])[0, label]))
        scores.append(spearmanr(sums, drops)[0])
    return scores


# --- the measure -----------------------------------------------------------------------------------------------------


def test_idsds_by_hand():
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # four cells of a pixel, whose deletion costs 1, 2, 3 and 4
    maps = torch.tensor([[[10.0, 30.0], [20.0, 40.0]]])
    model = linear(torch.ones(1, 1, 2, 2))
    assert cell_drops(model, image, side=2, classes=FIRST).tolist() == [[1, 2, 3, 4]]
    assert idsds(model, image, maps, side=2, classes=FIRST).tolist() == [pytest.approx(1 - 6 * (1 + 1) / (4 * 15))]
    assert cell_drops(model, image, side=2, fill=1.0, classes=FIRST).tolist() == [[0, 1, 2, 3]]
    assert cell_drops(model, image, side=2, classes=FIRST + 1).tolist() == [[0, 0, 0, 0]]
    assert idsds(model, image, maps, side=2, classes=FIRST + 1).tolist() == [0]  # all drops are the same


def test_idsds_is_the_published_protocol():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval()
    images, maps, labels = torch.randn(3, 3, 32, 48), torch.randn(3, 32, 48), torch.tensor([0, 4, 2])
    with torch.no_grad():
        expected = published(model, images, maps, labels)
    assert idsds(model, images, maps, classes=labels, batch=5).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [(32, 48), (30, 35), (4, 7)])
def test_every_pixel_belongs_to_one_of_sixteen_cells(size):
    cells = grid_cells(size, 4)
    expected = [[4 * y // size[0] * 4 + 4 * x // size[1] for x in range(size[1])] for y in range(size[0])]
    assert cells.tolist() == expected
    for axis in (0, 1):
        lengths = torch.bincount(cells.select(1 - axis, 0) // (4 if axis == 0 else 1), minlength=4)
        assert lengths.max() - lengths.min() <= 1
        assert lengths.min() >= 1
    if size == (32, 48):  # the authors enlarge their grid in this way for training
        grid = torch.arange(16.0).view(1, 1, 4, 4)
        assert torch.equal(cells, F.interpolate(grid, size, mode="nearest")[0, 0].long())


def test_the_attribution_of_a_cell_is_its_mean():
    maps = torch.rand(2, 10, 13)
    expected = [[float(one[grid_cells((10, 13), 4) == cell].mean()) for cell in range(16)] for one in maps]
    assert cell_means(maps).tolist() == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize("side", [10, 12])
def test_a_map_that_says_nothing_scores_zero_whatever_the_sizes_of_cells(side):
    """Even where the drop of a cell is its area."""
    images = torch.ones(1, 3, side, side)
    assert idsds(linear(images), images, torch.full((1, side, side), 0.3)).item() == 0


def test_maps_and_images_that_do_not_fit_are_refused():
    image, model = torch.ones(1, 3, 3, 8), linear(torch.ones(1, 3, 3, 8))
    with pytest.raises(ValueError, match="4x4 cells does not fit an image of 3x8 pixels"):
        idsds(model, image, torch.rand(1, 3, 8))
    with pytest.raises(ValueError, match="does not fit"):
        grid_cells((8, 8), 0)
    with pytest.raises(ValueError, match="expected maps"):
        idsds(model, torch.ones(1, 3, 8, 8), torch.rand(1, 4, 4))


# --- the augmentation ------------------------------------------------------------------------------------------------

PICTURE = Image.effect_noise((64, 48), 60).convert("RGB")
BRANCHES = [{}, {"crop_scale": 0.9}, {"resize": "crop", "crop_scale": 0.9}]


def test_half_of_the_images_lose_one_random_cell():
    torch.manual_seed(0)
    image, cells, lost = torch.ones(3, 30, 35), grid_cells((30, 35), 4), []
    for _ in range(800):
        seen = DeleteCell()(image)
        assert torch.equal(image, torch.ones(3, 30, 35)), "the image itself is left as it is"
        hidden = seen[0] == 0
        assert torch.equal(seen, image * ~hidden)
        if hidden.any():
            (cell,) = set(cells[hidden].tolist())
            assert torch.equal(hidden, cells == cell)
            lost.append(cell)
    assert 340 < len(lost) < 460
    assert min(np.bincount(lost, minlength=16)) > 8


@pytest.mark.parametrize("settings", BRANCHES, ids=["whole", "part", "crop"])
def test_a_cell_is_deleted_last(settings):
    with_cells = make_transforms(PREPROCESSING, AugmentationConfig(delete_cells=True, erase=1.0, **settings))
    without = make_transforms(PREPROCESSING, AugmentationConfig(erase=1.0, **settings))
    data = load_lesions("train", 2, 48)
    samples = Samples(data, np.asarray(data["label"][:]), Columns("image", "label", "mask"))
    dataset, plain = (ImageDataset(samples, each[0], seed=3) for each in (with_cells, without))
    deletions = 0
    for epoch in range(12):
        found, expected = dataset[epoch, 1]["pixel_values"], plain[epoch, 1]["pixel_values"]
        assert torch.equal(found, dataset[epoch, 1]["pixel_values"]), "it follows from seed, epoch and image"
        changed = (found != expected).any(dim=0)
        assert (found[:, changed] == 0).all()
        assert len(set(grid_cells((32, 32), 4)[changed].tolist())) <= 1
        deletions += bool(changed.any())
    assert 0 < deletions < 12
    assert torch.equal(with_cells[1](PICTURE), without[1](PICTURE)), "evaluation sees whole images"


def test_deletion_without_augmentation_is_refused():
    with pytest.raises(ValueError, match="delete_cells changes training images, but augment is off"):
        AugmentationConfig(augment=False, delete_cells=True)


def test_a_run_with_deleted_cells_is_recorded_and_resumed_to_the_bit(tmp_path):
    options = {"model": "softcam_test_resnet", "delete_cells": True, "epochs": 1, "checkpoint_steps": 2}
    train(tmp_path / "whole", **options)
    with cut_off_at(4):
        train(tmp_path / "broken", **options)
    train(tmp_path / "broken", **options, resume=True)
    assert equal(weights(tmp_path / "broken"), weights(tmp_path / "whole"))
    train(tmp_path / "plain", **{**options, "delete_cells": False})
    assert not equal(weights(tmp_path / "plain"), weights(tmp_path / "whole"))
    for name, expected in {"whole": True, "plain": False}.items():
        for file in ("settings.yaml", "model/recipe.yaml"):
            assert yaml.safe_load((tmp_path / name / file).read_text())["delete_cells"] is expected
        assert f"delete_cells: {str(expected).lower()}" in (tmp_path / name / "model" / "README.md").read_text()
        assert has_learnt_deletions(str(tmp_path / name / "model")) is expected


def test_features_of_images_with_deleted_cells_are_not_cached(tmp_path):
    options = {"model": "softcam_test_resnet", "freeze_backbone": True, "epochs": 1, "hflip": 0.0}
    train(tmp_path, **options, delete_cells=True)
    assert not (tmp_path / "features").exists()


# --- the benchmark ---------------------------------------------------------------------------------------------------


def test_a_benchmark_measures_signed_maps_of_the_true_label(tmp_path, monkeypatch, caplog):
    model, asked = vanilla_model(), []

    def counted(predict, images, **options):
        asked.append(len(images))
        return cell_drops(predict, images, **options)

    monkeypatch.setattr(measure, "cell_drops", counted)
    options = {"explainers": "guided-backprop cam", "measures": "idsds", "batch_size": 3, "aligned": False, **DATA}
    with caplog.at_level(logging.WARNING):
        rows = benchmark(model, tmp_path, **options)
    samples = [prepare_split(model)[index] for index in range(10)]
    pixels = torch.stack([sample["pixel_values"] for sample in samples])
    labels = torch.stack([sample["labels"] for sample in samples])
    with torch.no_grad():
        assert (model(pixels).argmax(dim=1) != labels).any(), "or the true label would make no difference"
    for row in rows:
        maps = create_explainer(row["explainer"], model, signed=True)(pixels, labels)[:, 0].detach()
        large = F.interpolate(maps[:, None], size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
        with torch.no_grad():
            expected = published(model, pixels, large, labels)
        assert np.isclose(row["idsds"], np.mean(expected), atol=1e-4)
    assert asked == [3, 3, 3, 1], "the drops are computed once for all explainers"
    assert "IDSDS ↑" in (tmp_path / "table1.md").read_text()
    (warning,) = [record.getMessage() for record in caplog.records if "idsds" in record.getMessage()]
    assert "nothing tells whether test_resnet did: train with --delete-cells" in warning


def record(folder, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ("settings.yaml" if (folder / "model").exists() else "recipe.yaml")
    file.write_text(yaml.safe_dump({"model": "cape_test_resnet", "data": "lesions", **settings}))
    return str(folder)


def test_the_record_of_a_run_tells_whether_its_model_has_seen_deleted_cells(tmp_path):
    seen, unseen = (record(tmp_path / name, delete_cells=value) for name, value in {"a": True, "b": False}.items())
    assert has_learnt_deletions(seen) is True
    assert has_learnt_deletions(f"local-dir:{seen}") is True
    assert has_learnt_deletions(unseen) is False
    assert has_learnt_deletions(record(tmp_path / "old")) is False, "the setting did not exist"
    assert has_learnt_deletions(record(tmp_path / "post", mode="post-fit", init=seen)) is True
    assert has_learnt_deletions(record(tmp_path / "post", mode="post-fit", init=unseen)) is False
    assert has_learnt_deletions(record(tmp_path / "post", mode="post-fit", init="resnet18")) is None
    assert has_learnt_deletions(record(tmp_path / "post", mode="post-fit", init=str(tmp_path / "post"))) is None
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "vanilla").mkdir()
    record(tmp_path / "run", delete_cells=True)
    assert has_learnt_deletions(str(tmp_path / "run" / "vanilla")) is True
    (tmp_path / "a" / "recipe.yaml").write_text("{")
    assert has_learnt_deletions(seen) is None
    for name in ("resnet18", "you/model", "", str(tmp_path / "none")):
        assert has_learnt_deletions(name) is None


def test_a_model_that_has_not_seen_deleted_cells_is_named_once(tmp_path, caplog):
    save_models(vanilla_model(), tmp_path)
    record(tmp_path / "cape", delete_cells=False)
    record(tmp_path / "vanilla", delete_cells=True)
    options = {"explainers": "cape cam", "measures": "idsds", "limit": 2, **DATA}
    benchmark(tmp_path / "cape", tmp_path / "out", tmp_path / "vanilla", **options)
    (warning,) = [line.getMessage() for line in caplog.records if "idsds" in line.getMessage()]
    assert f"{tmp_path / 'cape'} did not learn from such images: train with --delete-cells" in warning
    assert "vanilla" not in warning
    caplog.clear()
    record(tmp_path / "cape", delete_cells=True)
    benchmark(tmp_path / "cape", tmp_path / "again", tmp_path / "vanilla", **options)
    assert not [line for line in caplog.records if "idsds" in line.getMessage()]
