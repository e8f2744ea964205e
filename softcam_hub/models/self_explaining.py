"""Base of the timm models and the Hugging Face models: `backbone`, `head`, and `explain`."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import Tensor, nn

from .alignment import Alignment, Grid, Offset, check_sides, sides_of
from .backbone import Anatomy, TimmModule, input_size
from .classes import Classes, choose_classes, name_classes
from .evaluation_mode import evaluation_mode
from .explanation import Explanation
from .flip_registration import count_cells, measure_on_first_use
from .heads import HEADS, TERMS, EvidenceHead, select
from .image_size import ImageSize, check_takes_size, say_which_size_failed
from .inputs import ImageInput, as_batch, warn_of_values
from .label_kind import class_probabilities
from .map_kind import KindName
from .overlays import restore_pixels


class SelfExplaining(nn.Module):
    """A classifier that holds `backbone` and `head` and explains itself."""

    family: str
    architecture: str
    anatomy: Anatomy
    backbone: TimmModule
    head: EvidenceHead
    """Head of the family; `nn.Identity` in a model without classes."""
    num_classes: int
    in_chans: int
    drop_rate: float
    pretrained_cfg: dict[str, Any]
    backbone_args: dict[str, Any]
    multi_label: bool
    _alignment: Alignment | None
    _weights_before: "_Sample | None" = None
    """Some weights of the backbone as they were before a gradient flowed into it or others were loaded; else None."""
    measures_on_first_use: bool
    """Whether `explain` measures the alignment first: the weights come from elsewhere and bring none, or training has
    moved it since."""

    @property
    def alignment(self) -> Alignment | None:
        """Where the cells of the maps lie in the image, as `softcam_hub.measure_alignment` found it.

        None before that, after the backbone was trained, and after a head has learnt from finer features for the first
        time.
        """
        self._forget_if_trained()
        return self._alignment

    @alignment.setter
    def alignment(self, alignment: Alignment | None) -> None:
        ratio = self.anatomy.finest_ratio
        if alignment is not None and alignment.ratio != ratio:  # it comes from a model with other scales
            alignment = alignment.merged().divided(ratio)
        self._alignment, self._weights_before = alignment, None

    @property
    def head_class(self) -> type[EvidenceHead]:
        """Class of the head, also where a wrapper such as PEFT's stands in the place of `head`."""
        return HEADS[self.family]

    @property
    def exact(self) -> bool:
        """Whether the vanilla classifier's weights serve here unchanged; otherwise the head must be trained.

        A model with finer features (`scales`) is exact until it has learnt from them.
        """
        return self.anatomy.exact and not self.reads_finer

    @property
    def reads_finer(self) -> bool:
        """Whether finer features have a say in the prediction: whether their weights are not zero any more."""
        if not (self.anatomy.finer and self.num_classes):
            return False
        weight = self.head.fine_weight.detach()
        return weight.is_meta or bool(weight.any())  # those that accelerate keeps elsewhere come from a checkpoint

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the model was made for."""
        return input_size(self, self.backbone_args)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Size, crop, interpolation, mean and deviation of the images, as timm's `create_transform` takes them."""
        return resolve_data_config({}, pretrained_cfg={**self.pretrained_cfg, "input_size": self.input_size})

    def map_offset(self, size: int | tuple[int, int] | None = None) -> Offset | None:
        """Return how far the cells of the maps look from where they would be drawn without measuring.

            model.map_offset()  # (-0.43, -0.34): 0.43 cells further up, and 0.34 cells further left

        Heat maps and figures are corrected by it. `softcam_hub.measure_alignment` measures it.

        Args:
            size: Side, or height and width, of the images. The default is the size that the model was made for.

        Returns:
            (down, right) in cells, with None along an axis where it is not known; None where nothing is known.
        """
        if size is None:
            _, *size_of_model = self.input_size
            size = (size_of_model[0], size_of_model[1])
        sides = check_sides(size)
        if self.alignment is None or not self.alignment.is_known:
            return None
        cells = count_cells(self, sides)  # architectures round up or down
        ratio = self.anatomy.finest_ratio
        return None if cells is None else self.alignment.offset(sides, (ratio * cells[0], ratio * cells[1]))

    @property
    def timm_name(self) -> str:
        """Name by which timm makes such a model, such as `cape_resnet50`."""
        return f"{self.family}_{self.architecture}"

    @property
    def labels(self) -> tuple[str, ...]:
        """A different name for every class: the model's own names, those of ImageNet, or numbers."""
        return name_classes(self.num_classes, self.pretrained_cfg.get("label_names"))

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the features that the head reads at every location, (B, K, H, W).

        With several `scales`, finer features are packed behind the K channels of the last ones: see `scales.py`.
        """
        features = self.anatomy.features(self.backbone, self.prepare_images(images))
        self._watch_training(features)
        return features

    def _watch_training(self, features: Tensor) -> None:
        """Have some weights of the backbone noted when a gradient flows through features.

        Args:
            features: Output of the backbone. Compiled graphs are left alone, and so are those of `torch.fx`.
        """
        if self._weights_before is not None or self.measures_on_first_use or torch.compiler.is_compiling():
            return
        if isinstance(features, Tensor) and features.requires_grad:
            features.register_hook(self._note_weights)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights as every module does; other weights of the backbone look elsewhere."""
        self._note_weights()
        return super().load_state_dict(*args, **kwargs)

    def _note_weights(self, _: Tensor | None = None) -> None:
        """Note some weights of the backbone, before they may be changed."""
        if self._weights_before is None:
            self._weights_before = _sample_weights(self.backbone)

    def _forget_if_trained(self) -> None:
        """Have the next `explain` measure the alignment again if the backbone has changed since its weights were noted.

        A gradient alone moves nothing: attributions of the input have one, too, and so have heads that are trained on a
        frozen backbone. A head moves its maps when it learns from finer features for the first time.
        """
        place = self._alignment
        if place is not None and place.depths and self.reads_finer != (len(place.depths) > 1):
            if self.reads_finer:  # it was measured before the head learnt from finer features
                self._alignment, self._weights_before, self.measures_on_first_use = None, None, True
                return
            self._alignment = place.merged().divided(place.ratio)  # a new head has not learnt from them
        if self._weights_before is None:
            return
        now = _sample_weights(self.backbone)
        if not now.is_of_same_weights(self._weights_before):
            self._alignment, self._weights_before, self.measures_on_first_use = None, None, True
        elif now.precision != self._weights_before.precision:
            self._weights_before = now

    def prepare_images(self, images: Tensor) -> Tensor:
        """Check images (B, C, H, W), and cast them to the dtype of the backbone, as transformers' models do."""
        check_images(images, self.in_chans)
        for weight in self.backbone.parameters():
            if weight.is_floating_point():
                return images.to(weight.dtype)
        return images

    def drop_features(self, features: Tensor) -> Tensor:
        """Apply the classifier's dropout: dropping channels of F is dropping entries of the pooled vector."""
        if not self.drop_rate or not self.anatomy.finer:
            return F.dropout2d(features, self.drop_rate, self.training) if self.drop_rate else features
        last = F.dropout2d(self.last_features(features), self.drop_rate, self.training)
        return torch.cat([last, features[:, self.anatomy.channels :]], dim=1)

    def last_features(self, features: Tensor) -> Tensor:
        """Return the K channels (B, K, H, W) of features that the vanilla classifier reads."""
        return features[:, : self.anatomy.channels] if self.anatomy.finer else features

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (B, C) into probabilities: a softmax, or a sigmoid where an image may have several labels."""
        return class_probabilities(logits, self.multi_label)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay must spare."""
        names = self.backbone.no_weight_decay() if hasattr(self.backbone, "no_weight_decay") else set()
        own = {"head.log_temperature"} if self.head_class.has_temperature else set()
        return {f"backbone.{name}" for name in names} | own

    @property
    def group_matcher(self) -> Callable[..., Any]:
        """timm's layer groups of the backbone, for layer-wise learning rates; the head comes last."""
        theirs = self.backbone.group_matcher  # where there is none, timm finds that we have none either

        def group_matcher(coarse: bool = False) -> Any:
            matcher = theirs(coarse=coarse)
            if callable(matcher):
                return lambda name: matcher(name.removeprefix("backbone.")) if "backbone." in name else float("inf")
            return {group: _below_backbone(spec) for group, spec in matcher.items()}

        return group_matcher

    def __repr__(self) -> str:
        return f"{self._summary()}\n{super().__repr__()}"

    def _summary(self) -> str:
        """Say in a line what `print(model)` has no other place for: name, family, exactness, map size and kinds."""
        _, height, width = self.input_size
        parts = [f"family {self.family}"]
        if self.reads_finer:
            parts.append(f"{1 + len(self.anatomy.finer)} scales")
        else:
            parts.append("exact" if self.exact else "not exact, so that the head must be trained")
        if stride := self.anatomy.stride:
            ratio = self.anatomy.finest_ratio
            rows, columns = (round(side / stride) * ratio for side in (height, width))
            parts.append(f"maps {rows}x{columns} of images {height}x{width}")
        return f"{self.timm_name}: {', '.join(parts)}, kinds {', '.join(self.head_class.kinds)}"

    @torch.no_grad()
    def explain(
        self,
        images: ImageInput | None = None,
        classes: Classes | None = None,
        top_k: int = 1,
        kind: KindName | None = None,
        *,
        size: ImageSize | None = None,
        pixel_values: ImageInput | None = None,
    ) -> Explanation:
        """Return the maps of the given classes, or of the `top_k` most probable ones.

        The model computes in eval mode, and its modes are restored afterwards. Several threads may share one model.

            model.explain("photo.jpg", classes="tench").save("why.png")

        Args:
            images: Images (B, C, H, W) or one image (C, H, W), normalised as for `forward`; the output of an image
                processor; or pictures, which the model's own preprocessing turns into such images: a PIL image, an
                array (H, W, 3) of bytes or of numbers in [0, 1], a path, an http(s) URL, a uint8 tensor (C, H, W). A
                list may hold any of these.
            classes: A class for all images, one per image (B,), several per image (B, k), or several for all images
                (1, k), as indices or label names. With a single image, a flat list names several classes of it.
            top_k: Number of classes to explain when `classes` is not given.
            kind: One of `head.kinds`. The default is the kind that the prediction is made of.
            size: Side, or height and width, at which the network sees the images, in place of its own: larger images
                have finer maps and take longer. Their prediction is another one, which the maps add up to.
            pixel_values: Images in place of `images`, for `model.explain(**processor(image))`.
        """
        if not self.num_classes:
            raise ValueError("explain() needs classes: this model has num_classes=0; call reset_classifier(n) first")
        given = images if pixel_values is None else {"pixel_values": pixel_values}
        if given is None or (images is not None and pixel_values is not None):
            raise TypeError("explain() takes images, or pixel_values in their place: give one of the two")
        kind = self.head_class.check_kind(kind)
        batch = self.as_batch(given, size)
        chosen = choose_classes(classes, top_k, len(batch), self.num_classes, self.labels)
        self._forget_if_trained()
        if self.measures_on_first_use:
            measure_on_first_use(self)
        with evaluation_mode(self):
            with say_which_size_failed(size):
                features = self.forward_features(batch)
            some = self.head_class.draws_single_classes  # the maps of thousands of classes can cost more than a network
            logits, maps = (self.head(features), features) if some else self.head(features, kind=kind)
            probabilities = self.probabilities(logits)
            index = probabilities.topk(chosen, dim=1).indices if isinstance(chosen, int) else chosen.to(logits.device)
            maps = self.head(features, kind=kind, classes=index)[1] if some else select(maps, index)
            terms = self._explain_terms(features, index) if self.anatomy.finer else {}
        _check_evidence(logits, maps)
        data = self.preprocessing
        pixels = restore_pixels(batch, data["mean"], data["std"]) if self.in_chans in (1, 3) else None
        probabilities = probabilities.gather(1, index)
        grid = Grid(sides_of(batch), sides_of(maps), self.alignment)
        return Explanation(maps, index, probabilities, kind, self.labels, pixels, grid, terms)

    def _explain_terms(self, features: Tensor, classes: Tensor) -> dict[int, Tensor]:
        """Compute the evidence of every depth for classes (B, k), by the pixels for a cell."""
        if self.head_class.draws_single_classes:
            _, terms = self.head(features, kind=TERMS, classes=classes)
        else:
            _, terms = self.head(features, kind=TERMS)
            terms = [select(term, classes) for term in terms]
        return {round(self.anatomy.stride / 2**depth): term for depth, term in enumerate(terms)}

    def as_batch(self, images: ImageInput, size: ImageSize | None = None) -> Tensor:
        """Return images in any form that `explain` takes as a batch (B, C, H, W) on the device of the model.

        Args:
            images: Images in any form that `explain` takes.
            size: Side, or height and width, of the batch in place of the model's own. Tensors are resized to it.
        """
        if size is not None:
            own, fixed = self.input_size[1:], bool(self.pretrained_cfg.get("fixed_input_size"))
            check_takes_size(self.backbone, fixed, size, own)
        batch = as_batch(images, self.preprocessing, size)
        check_images(batch, self.in_chans)
        if not torch.isfinite(batch).all():
            raise ValueError("there are images with NaN or infinite values: check the preprocessing")
        warn_of_values(batch, self.preprocessing)
        devices = (weight.device for weight in self.backbone.parameters())
        device = next(devices, batch.device)
        return batch if device.type == "meta" else batch.to(device)  # accelerate moves the images of offloaded models


def _check_evidence(logits: Tensor, maps: Tensor) -> None:
    """Raise ValueError for predictions or maps that are not finite, although the images are."""
    if not (torch.isfinite(logits).all() and torch.isfinite(maps).all()):
        raise ValueError(
            "explain() got NaN or infinite evidence for finite images: the model's weights are broken, or its "
            "precision overflows; check the weights for NaN, or compute in float32"
        )


def _below_backbone(spec: Any) -> Any:
    """Rewrite a timm group specification for names that begin with `backbone.`.

    Args:
        spec: A pattern, or a list of (pattern, suffix).
    """
    if isinstance(spec, str):
        unanchored = re.sub(r"(?<!\[)\^", "", spec)
        return rf"^backbone\.(?:{unanchored})"
    return None if spec is None else [(_below_backbone(pattern), suffix) for pattern, suffix in spec]


@torch.fx.wrap  # a tracer has no images yet
def check_images(images: Any, channels: int) -> None:
    """Refuse anything but a floating-point batch (B, `channels`, H, W).

    Shape and dtype alone are checked, not values, so that export stays whole.

    Args:
        images: Batch of images.
        channels: Number of channels that the model expects.
    """
    if not isinstance(images, Tensor):
        hint = "maps need whole images, NaFlex patches have no grid" if isinstance(images, dict) else ""
        raise TypeError(
            f"expected images as a torch.Tensor (B, {channels}, H, W), got {type(images).__name__}: "
            f"{hint or 'convert them with timm.data.create_transform'}"
        )
    if images.ndim != 4:
        hint = ": add the batch dimension with images[None]" if images.ndim == 3 else ""
        raise ValueError(f"expected images of shape (B, {channels}, H, W), got {tuple(images.shape)}{hint}")
    if images.shape[1] != channels:
        advice = f"convert them, or build the model with in_chans={images.shape[1]}"
        if images.shape[3] == channels:
            advice = "move the channels to the front with .movedim(-1, 1)"
        raise ValueError(
            f"expected images with {channels} channels, got {images.shape[1]} in shape {tuple(images.shape)}: {advice}"
        )
    if not images.is_floating_point():
        raise TypeError(f"expected floating-point images, got {images.dtype}: scale to [0, 1] and normalise them first")


class _Sample(NamedTuple):
    """A few numbers of every weight of a backbone, which training changes, and the coarsest precision among them."""

    values: Tensor
    precision: float

    def is_of_same_weights(self, other: "_Sample") -> bool:
        """Tell whether two samples differ by no more than a change of precision explains."""
        if self.precision == other.precision:
            return torch.equal(self.values, other.values)
        if self.values.shape != other.values.shape:
            return False
        coarser = max(self.precision, other.precision)
        return torch.allclose(self.values, other.values, rtol=coarser, atol=1e-7)  # float16 has nothing smaller


@torch.no_grad()
def _sample_weights(backbone: nn.Module) -> _Sample:
    """Return the first, the middle and the last number of every weight, on whatever device they are.

    Adapters, norms and biases may be trained alone, so that no weight is left out.
    """
    numbers: dict[torch.device, list[Tensor]] = {}
    precision = 0.0
    for weight in backbone.parameters():
        if weight.is_floating_point() and not weight.is_meta:
            own: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight  # of a sharded model
            if own.numel():
                places = (tuple(int(share * (side - 1)) for side in own.shape) for share in (0, 0.5, 1))
                numbers.setdefault(own.device, []).extend(own[place].float() for place in places)
                precision = max(precision, torch.finfo(own.dtype).eps)
    parts = [torch.stack(found).cpu() for found in numbers.values()]
    return _Sample(torch.cat(parts) if parts else torch.empty(0), precision)
