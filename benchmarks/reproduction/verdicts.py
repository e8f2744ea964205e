"""Judge a claim of the papers by its parts, each of which is compared with a rule.

A claim *holds* if all parts hold, *does not hold* if none holds, and is *mixed* otherwise. A part with fewer
than three seeds decides nothing. That one map is better than another takes every seed, and an interval of the
difference that excludes 0; a verdict says so where there are no values of the images to compute it from.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from softcam_hub.evaluation.significance import Difference

from .findings import Column, Findings

SEEDS = 3
"""Least number of seeds with which a part decides."""

MAY_LOSE, MAY_LOSE_AUC = 1.0, 0.01
"""Largest loss of accuracy, in points, and of AUC that counts as none."""

NOT_MEASURED = "not measured yet"
WITHOUT_INTERVAL = "without interval"


@dataclass(frozen=True)
class Part:
    """One comparison that belongs to a claim.

    Args:
        study: Name of the study.
        run: Name of the trained run, or several runs in words.
        measure: Name of the compared quantity.
        figure: Numbers, as text.
        holds: Result of the rule, or None where the part decides nothing.
        lacks_interval: Whether the rule asks for an interval, and there are no values of the images.
    """

    study: str
    run: str
    measure: str
    figure: str
    holds: bool | None
    lacks_interval: bool = False

    @property
    def word(self) -> str:
        """The result in one word."""
        return "-" if self.holds is None else "yes" if self.holds else "no"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and the rule for its parts.

    Args:
        code: Short name, such as S1.
        says: Claim in a sentence.
        rule: Condition that each part must meet, in a sentence.
        judge: Function that computes the parts from the rows of some studies.
        studies: Studies of the small variant that decide.
    """

    code: str
    says: str
    rule: str
    judge: Callable[[Findings, tuple[str, ...]], list[Part]]
    studies: tuple[str, ...] = ()


def verdict(parts: list[Part]) -> str:
    """Return the verdict on a claim in words; if it is mixed, with the number of parts that hold."""
    missing = ", ".join(part.measure for part in parts if part.figure == NOT_MEASURED)
    deciding = [part for part in parts if part.holds is not None]
    lacking = sum(part.lacks_interval for part in deciding)
    remarks = [f"{NOT_MEASURED}: {missing}"] if missing else []
    if lacking:
        remarks.append(f"{WITHOUT_INTERVAL}: {lacking} of {len(deciding)} part{'s' * (len(deciding) > 1)}")
    return "; ".join([_verdict(parts), *remarks])


def _verdict(parts: list[Part]) -> str:
    deciding = [part for part in parts if part.holds is not None]
    if not deciding:
        return "not tested here"
    if all(part.holds for part in deciding):
        return "holds"
    if not any(part.holds for part in deciding):
        return "does not hold"
    measures: dict[str, list[bool]] = {}
    for part in deciding:
        measures.setdefault(part.measure, []).append(part.holds)
    return "mixed: " + ", ".join(f"{name} {sum(held)} of {len(held)}" for name, held in measures.items())


def part(
    study: str, run: str, measure: str, figure: str, column: Column, holds: Callable[[Column], bool]
) -> list[Part]:
    """Return a list with one part, or an empty list where there are no numbers.

    Args:
        study: Name of the study.
        run: Name of the trained run.
        measure: Name of the compared quantity.
        figure: Numbers, as text.
        column: Number of each seed.
        holds: Rule for the column.
    """
    if not column:
        return []
    return [Part(study, run, measure, figure, holds(column) if len(column) >= SEEDS else None)]


def better_map(
    study: str, run: str, measure: str, figure: str, gain: Column, images: Difference | None, form: str = ".1f"
) -> list[Part]:
    """Judge whether a map is better than another: in every seed, and by an interval that excludes 0.

    Args:
        study: Name of the study.
        run: Name of the trained run.
        measure: Name of the compared quantity.
        figure: Numbers, as text.
        gain: Advantage of the map in every seed.
        images: The same advantage on the images of all seeds, or None where there are no values of the images.
        form: Format of the advantage.
    """
    in_every_seed = always(lambda value: value > 0)
    if images is None:
        found = part(study, run, measure, figure, gain, in_every_seed)
        return [replace(one, lacks_interval=True) for one in found]
    figure += f"; difference {images.difference:+{form}} [{images.low:{form}}, {images.high:{form}}]"
    return part(study, run, measure, figure, gain, lambda gain: in_every_seed(gain) and images.low > 0)


def always(test: Callable[[float], bool]) -> Callable[[Column], bool]:
    """Return a rule that every seed must meet."""
    return lambda column: all(test(value) for value in column.values())
