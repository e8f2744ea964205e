"""Fields of configurations: their help texts, and the ranges of their values.

A range is part of the type, as in `lr: NotNegative = flag(1e-3, "Learning rate.")`, where `check_ranges` finds it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Annotated, Any, get_args, get_type_hints


def flag(default: Any, text: str) -> Any:
    """Make a field of a dataclass that `transformers.HfArgumentParser` shows with a help text."""
    return field(default=default, metadata={"help": text.replace("%", "%%")})


@dataclass(frozen=True)
class Range:
    """An interval of numbers. Infinity and NaN lie outside of every interval.

    Args:
        low: Lower end.
        high: Upper end.
        includes_low: The lower end belongs to the interval.
        includes_high: The upper end belongs to the interval.
    """

    low: float
    high: float = math.inf
    includes_low: bool = True
    includes_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.includes_low else value > self.low
        return above and (value <= self.high if self.includes_high else value < self.high)

    def __str__(self) -> str:
        if self.high < math.inf:
            left, right = "[" if self.includes_low else "(", "]" if self.includes_high else ")"
            return f"in {left}{self.low:g}, {self.high:g}{right}"
        return f"{'at least' if self.includes_low else 'above'} {self.low:g}"


Count = Annotated[int, Range(1)]
WholeNumber = Annotated[int, Range(0)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, includes_low=False)]
Probability = Annotated[float, Range(0, 1, includes_high=True)]
Share = Annotated[float, Range(0, 1, includes_low=False, includes_high=True)]
"""A part of a whole that is never nothing."""
ProperShare = Annotated[float, Range(0, 1)]
"""A part of a whole that is never all of it."""
Decay = Annotated[float, Range(0, 1, includes_low=False)]


def check_ranges(config: Any) -> None:
    """Raise ValueError for the first field of a dataclass outside of its range, and TypeError for no such number."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        for kind, bounds in _ranges_in(hint):
            is_right = isinstance(value, Integral if kind is int else Real)
            if value is not None and not is_right:
                wanted = "a whole number" if kind is int else "a number"
                raise TypeError(f"{name} must be {wanted}, got {value!r}")
            if value is not None and value not in bounds:
                finite = " and finite" if value == math.inf else ""
                raise ValueError(f"{name} must be {bounds}{finite}, got {value}")


def _ranges_in(hint: Any) -> Iterator[tuple[type, Range]]:
    """Yield the kind of number and the range of a type such as `Count` or `Positive | None`, if it has one."""
    for part in (hint, *get_args(hint)):
        metadata = getattr(part, "__metadata__", ())
        yield from ((part.__origin__, item) for item in metadata if isinstance(item, Range))
