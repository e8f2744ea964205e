"""Measure where the cells of a map lie: compare the maps of images with the maps of the mirrored images.

Cell i of a map looks at the place i + 1/2 + δ, in cells. In the mirrored image, whose map is mirrored back, it looks at
i + 1/2 - δ. Both maps show one and the same image, so that the shift that brings them together is 2δ. Only forward
passes are needed, and any architecture can be measured. With random weights the two maps have less in common.
"""

import logging
import threading
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .alignment import Alignment, sides_of
from .backbone import TimmModule
from .evaluation_mode import evaluation_mode
from .flip_correlation import LARGEST_OFFSET, STEP, correlate_flips, find_offset
from .heads import TERMS, select
from .inputs import ImageInput

logger = logging.getLogger(__name__)

IMAGES, FEWEST_IMAGES = 32, 8
"""Number of images that a measurement takes, and number of different images below which their spread says nothing."""

NOISE_IMAGES = 12
"""Number of images of noise, which are alike: fewer are enough, and nobody asked for the time that they take."""

CLASSES = 1000
"""Number of most probable classes whose evidence is compared."""

LEAST_CORRELATION, LARGEST_SPREAD = 0.75, 0.2
"""Limits of a measurement that counts: median correlation, and interquartile range over images in cells."""

_IMAGES_AT_ONCE = 8

_FAR = 960
"""Pixels by which a larger image is larger, to count the pixels for a cell: a multiple of nearly all strides."""

_LOCK = threading.Lock()
"""Lets one thread alone measure where several explain with one model."""


@dataclass(frozen=True)
class AlignmentMeasurement:
    """What `measure_alignment` found, for the rows (first) and the columns of the maps.

    Args:
        offset: Distance between where the cells look and where they are drawn as squares, in cells (down, right), at
            which the maps of all images agree best. With several `scales`, the evidence of one depth is compared.
        spread: Interquartile range of the distance over the images, in cells.
        correlation: Median correlation of the two maps of an image at their best shift, for the predicted class.
        alignment: Places of the cells, which are known along the axes on which the measurement counts.
    """

    offset: tuple[float, float]
    spread: tuple[float, float]
    correlation: tuple[float, float]
    alignment: Alignment

    @property
    def accepted(self) -> tuple[bool, bool]:
        """Whether the measurement counts, for rows and columns."""
        return (self.alignment.start[0] is not None, self.alignment.start[1] is not None)

    def describe(self) -> str:
        """Say what was found in a sentence."""
        parts = [
            f"{self.offset[axis]:+.2f} cells {name} (correlation {self.correlation[axis]:.2f}, spread "
            f"{self.spread[axis]:.2f}{'' if self.accepted[axis] else ', does not count'})"
            for axis, name in enumerate(("down", "right"))
        ]
        return f"cells look {' and '.join(parts)} from where they are drawn as squares"


@torch.no_grad()
def measure_alignment(model: nn.Module, images: ImageInput | None = None) -> AlignmentMeasurement:
    """Measure where the cells of a model's maps lie in the image, and keep the result with the model.

        softcam_hub.measure_alignment(model, images).describe()
        model.save_pretrained("my-model")  # heat maps of this folder are aligned wherever it is loaded

    About 32 images are enough, such as validation images, and 8 different ones are needed. Each is run through the
    network three times. The result counts along an axis where maps and mirrored maps correlate by 0.75 at least and
    the images agree within 0.2 cells. Elsewhere maps are drawn as squares that fill the image. Training the backbone
    further makes the result stale: it is forgotten, and the next `explain` measures on noise. So does loading other
    weights. After training through `torch.compile` or several GPUs in one process (`DataParallel`), and in a moving
    average of a model (`ModelEmaV3`), which nothing notices, measure again. A new head needs no new measurement.

    With several `scales`, the evidence of every depth is measured. Maps are drawn at the place of the finest depth that
    counts, and post-hoc maps at that of the last features. A head that has learnt nothing from finer features has the
    place of the last ones, so that the first training that changes this is measured again, too.

    Args:
        model: timm or Hugging Face model of this package, with trained weights.
        images: Images in any form that `model.explain` takes. The default is noise with the spectrum of photographs.
    """
    if not hasattr(model, "as_batch"):
        raise TypeError(
            f"measure_alignment() takes a self-explaining model, got {type(model).__name__}: make one of a timm "
            "classifier with softcam_hub.convert(model), and take a wrapped model out of its wrapper"
        )
    return _measure(model, images)


def _measure(model: TimmModule, images: ImageInput | None) -> AlignmentMeasurement:
    if not model.num_classes:
        raise ValueError("measure_alignment() compares maps of classes, and this model has num_classes=0")
    batch = model.as_batch(noise_images(model) if images is None else images)
    if not len(batch):
        raise ValueError("measure_alignment() got no image: about 32 are enough")
    if model.reads_finer and model.anatomy.stride and not pads_same(model):
        # grids of several depths fit an image of whole large cells alone, and are lengthened for others
        stride = round(model.anatomy.stride)
        height, width = (max(side // stride, 1) * stride for side in sides_of(batch))
        batch = batch[:, :, :height, :width]
    with evaluation_mode(model):
        depths = _register(model, batch)
    size, has_enough = sides_of(batch), len(torch.unique(batch.flatten(1), dim=0)) >= FEWEST_IMAGES
    counts = has_enough and not _has_seen_no_image(model)
    steps, same = find_steps(model, size, depths[0].cells), pads_same(model)
    places = tuple(one.places(size, steps, same, counts, 2**depth) for depth, one in enumerate(depths))
    chosen = max(range(len(places)), key=lambda depth: (sum(start is not None for start in places[depth].start), depth))
    ratio = model.anatomy.finest_ratio
    parts = ratio // 2**chosen
    alignment = places[chosen].of_parts(parts, places if ratio > 1 else ())
    if not has_enough and model.alignment is not None and model.alignment.is_known:
        logger.warning(
            "%s: %d different images are needed, so that this measurement does not count and the earlier one is kept",
            *(model.timm_name, FEWEST_IMAGES),
        )
    else:
        model.alignment = alignment
    model.measures_on_first_use = False
    best = depths[chosen]
    distances = _pair(best.offset * parts), _pair(best.spread * parts)
    return AlignmentMeasurement(*distances, _pair(best.correlation), alignment)


@dataclass(frozen=True)
class _Registration:
    """How far cells look from where they are drawn as squares, for rows and columns.

    Args:
        offset: The distance in cells, (2,).
        spread: Its interquartile range over the images, (2,).
        correlation: Median correlation at the best shift, (2,).
        cells: Height and width of the maps.
    """

    offset: Tensor
    spread: Tensor
    correlation: Tensor
    cells: tuple[int, int]

    def places(
        self, size: tuple[int, int], steps: tuple[float, float], same_padding: bool, counts: bool, ratio: int
    ) -> Alignment:
        """Return the places of the cells. They follow from the middle of the map, which looks at the middle of the
        image and the distance beyond.

        Args:
            size: Height and width of the images.
            steps: Pixels from one cell of the last features to the next.
            same_padding: The network pads as TensorFlow does.
            counts: Whether the images and the weights allow a measurement.
            ratio: Number of these cells for one cell of the last features, along each axis.
        """
        own = (steps[0] / ratio, steps[1] / ratio)
        known = (self.correlation >= LEAST_CORRELATION) & (self.spread <= LARGEST_SPREAD)
        known &= self.offset.abs() < LARGEST_OFFSET - STEP
        top, left = (
            round(side / 2 + (distance - (cells - 1) / 2) * step, 3) if counts and found else None
            for side, distance, cells, step, found in zip(
                size, self.offset.tolist(), self.cells, own, known.tolist(), strict=True
            )
        )
        return Alignment((top, left), own, size, same_padding, ratio)


def _has_seen_no_image(model: TimmModule) -> bool:
    """Tell whether a model has random weights: its batch norms hold the statistics that they start with or, without
    such norms, the biases of its other norms, or all biases, are still zero.

    Some random networks are so smooth that their maps of mirror images agree. They look where the geometry of their
    layers says, and training moves that. Weights that accelerate keeps elsewhere come from a checkpoint.
    """
    norms = [norm for norm in model.backbone.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    if norms:
        first = [norm.running_mean for norm in norms]
        return not any(mean is None or mean.is_meta or bool(mean.any()) for mean in first)
    biases = {name: weight for name, weight in model.backbone.named_parameters() if name.endswith("bias")}
    chosen = [weight for name, weight in biases.items() if "norm" in name] or list(biases.values())
    return bool(chosen) and not any(bias.is_meta or bool(bias.any()) for bias in chosen)


def measure_on_first_use(model: TimmModule) -> None:
    """Measure the alignment of a model with weights from elsewhere that brings none, once."""
    with _LOCK:
        if model.measures_on_first_use:
            if _has_seen_no_image(model):
                model.measures_on_first_use = False
                return
            logger.warning(
                "%s: measuring once where the cells of its maps lie, on %d images of noise. Save the model to keep the "
                "result, or call softcam_hub.measure_alignment(model, images) with images of your own",
                *(model.timm_name, NOISE_IMAGES),
            )
            measure_alignment(model)  # which clears the flag at its end: other threads wait, and a break costs nothing


def _pair(values: Tensor) -> tuple[float, float]:
    return (round(float(values[0]), 4), round(float(values[1]), 4))


def _register(model: TimmModule, images: Tensor) -> list[_Registration]:
    """Find how far the cells of every depth of a model look from their squares, the last features first. Depths that
    the model has not learnt from yet are left out.
    """
    parts = [_compare_flips(model, part) for part in images.split(_IMAGES_AT_ONCE)]
    found = []
    for of_images in zip(*parts, strict=True):
        curves, judged = (torch.cat([getattr(one, name) for one in of_images]) for name in ("curves", "judged"))
        offset = find_offset(curves.mean(dim=0))  # images whose maps agree well say most
        quartiles = find_offset(curves).quantile(curves.new_tensor([0.25, 0.75]), dim=0)
        spread, correlation = quartiles[1] - quartiles[0], judged.median(dim=0).values
        found.append(_Registration(offset, spread, correlation, of_images[0].cells))
    return found


@dataclass(frozen=True)
class _FlipComparison:
    """Correlations of images by axis, (B, 2, offsets), the largest of the predicted class, (B, 2), and the size of the
    maps.
    """

    curves: Tensor
    judged: Tensor
    cells: tuple[int, int]


def _compare_flips(model: TimmModule, images: Tensor) -> list[_FlipComparison]:
    """Correlate the evidence of every depth with that of the mirrored images.

    Many classes together say best where the cells look. Evidence that all classes share is left out of them: no
    classifier learns it. Whether the network treats mirror images alike is judged by the class that it predicts.
    """
    mean_evidence, plain = _evidence(model, images)
    mirrored = {axis: _evidence(model, images.flip(axis))[1] for axis in (2, 3)}
    ranked = mean_evidence.topk(min(CLASSES, mean_evidence.shape[1])).indices
    found = []
    for depth, evidence in enumerate(plain):
        some = ranked[:, : max(1, CLASSES // 4**depth)]  # as many numbers at every depth
        curves, judged = [], []
        for axis in (2, 3):
            pair = [evidence, mirrored[axis][depth].flip(axis)]
            pair = [values.mT for values in pair] if axis == 2 else pair
            curves.append(correlate_flips(*(_precise(_contrast(values, some)) for values in pair)))
            judged.append(correlate_flips(*(_precise(select(values, ranked[:, :1])) for values in pair)).amax(dim=1))
        of_curves, of_judged = (torch.stack(values, dim=1).cpu() for values in (curves, judged))
        found.append(_FlipComparison(of_curves, of_judged, sides_of(evidence)))
    return found


def _evidence(model: TimmModule, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Compute the mean evidence (B, C), and the evidence of every depth that the model has learnt from."""
    features = model.forward_features(images)
    if model.reads_finer:
        _, terms = model.head(features, kind=TERMS)
    else:  # all cells that divide a large one hold the same evidence
        _, evidence = model.head(features, kind="evidence")
        terms = [F.avg_pool2d(evidence, model.anatomy.finest_ratio)]
    return torch.stack([_precise(term.mean(dim=(2, 3))) for term in terms]).sum(dim=0), terms


def _precise(values: Tensor) -> Tensor:
    """Return values in float64 on the CPU, and in float32 on devices that may lack it."""
    return values.double() if values.device.type == "cpu" else values.float()


def _contrast(evidence: Tensor, classes: Tensor) -> Tensor:
    """Return the evidence for some classes (B, k) less the mean over all, where there are several."""
    chosen = select(evidence, classes)
    return chosen - evidence.mean(dim=1, keepdim=True) if evidence.shape[1] > 1 else chosen


def find_steps(model: TimmModule, size: tuple[int, int], cells: tuple[int, int]) -> tuple[float, float]:
    """Return the pixels from one cell to the next, for rows and columns.

    A ResNet gives 10 cells for 300 pixels, but from one cell to the next it is 32 pixels, not 30. So the cells of an
    image that is larger by many pixels are counted, without computing it. An architecture of fixed size divides its
    images evenly.

    Args:
        model: Model whose maps are measured.
        size: Height and width of an image.
        cells: Height and width of its maps.
    """
    even = (size[0] / cells[0], size[1] / cells[1])
    if model.pretrained_cfg.get("fixed_input_size"):
        return even
    far = count_cells(model, (size[0] + _FAR, size[1] + _FAR))
    if far is None or far[0] <= cells[0] or far[1] <= cells[1]:
        return even
    steps = (_FAR / (far[0] - cells[0]), _FAR / (far[1] - cells[1]))
    whole = (round(steps[0]), round(steps[1]))
    if whole == steps:
        return steps
    # a stride of 14 does not divide 960: 60 strides make 60 cells more if it is the stride
    far = count_cells(model, (size[0] + 60 * whole[0], size[1] + 60 * whole[1]))
    return whole if far == (cells[0] + 60, cells[1] + 60) else steps


def count_cells(model: TimmModule, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return height and width of the last features of an image without computing them, or None for images that do not
    fit.

    Args:
        model: Model of the features.
        size: Height and width of the image.
    """
    args = {**model.backbone_args, "num_classes": 0}
    try:
        with torch.device("meta"):
            backbone: TimmModule = timm.create_model(model.architecture, **args).eval()
            image = torch.empty(1, model.in_chans, *size)
            return sides_of(model.anatomy.to_maps(backbone.forward_features(image), image.shape[-2:]))
    except (RuntimeError, ValueError, AssertionError, NotImplementedError, TypeError):
        return None


def noise_images(model: TimmModule) -> Tensor:
    """Make normalised images of noise whose amplitude falls with the frequency, as in photographs, (12, C, H, W)."""
    channels, height, width = model.input_size
    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults of the program are
    white = torch.randn(NOISE_IMAGES, channels, height, width, generator=torch.Generator().manual_seed(0), **options)
    rows, columns = torch.fft.fftfreq(height, **options)[:, None], torch.fft.rfftfreq(width, **options)
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / max(height, width))
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
    noise = noise - noise.mean(dim=(2, 3), keepdim=True)
    return noise / noise.std(dim=(2, 3), keepdim=True)


def pads_same(model: TimmModule) -> bool:
    """Tell whether a network pads as TensorFlow does, by a width that depends on the size of the image.

    With a stride of 1, as in the average pooling of dilated ResNets, it does not.
    """
    return any(layer.stride not in (1, (1, 1)) for layer in same_layers(model))


def same_layers(model: TimmModule) -> list[nn.Module]:
    """Return the layers of a network that compute their padding from the size of the image."""
    return [module for module in model.backbone.modules() if type(module).__name__.endswith("Same")]
