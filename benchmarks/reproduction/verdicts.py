"""How a claim of the papers is judged: parts are put to its rule.

A claim *holds* where all parts do, *does not hold* where none does, and is *mixed* otherwise. A part with fewer than
three seeds decides nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .findings import Column, Findings

SEEDS = 3
MAY_LOSE, MAY_LOSE_AUC = 1.0, 0.01
"""Points of accuracy, and of the area under the curve, from which on a loss is one."""

NOT_MEASURED = "not measured yet"


@dataclass(frozen=True)
class Part:
    """One comparison.

    Args:
        study: where it was measured.
        run: what was trained, or the family.
        measure: what is compared.
        figure: the numbers.
        holds: None where it decides nothing.
    """

    study: str
    run: str
    measure: str
    figure: str
    holds: bool | None

    @property
    def word(self) -> str:
        return "-" if self.holds is None else "yes" if self.holds else "no"


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is judged.

    Args:
        code: of the claim.
        says: the claim in a sentence.
        rule: what must be true of each part.
        judge: parts from the rows of some studies.
        studies: of the small variant, that it is judged by.
    """

    code: str
    says: str
    rule: str
    judge: Callable[[Findings, tuple[str, ...]], list[Part]]
    studies: tuple[str, ...] = ()


def verdict(parts: list[Part]) -> str:
    """`holds`, `does not hold`, `mixed` and how many parts of each measure hold, or `not tested here`."""
    missing = ", ".join(part.measure for part in parts if part.figure == NOT_MEASURED)
    return _verdict(parts) + (f"; {NOT_MEASURED}: {missing}" if missing else "")


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
    """One part, or none where there is no number."""
    if not column:
        return []
    return [Part(study, run, measure, figure, holds(column) if len(column) >= SEEDS else None)]


def always(test: Callable[[float], bool]) -> Callable[[Column], bool]:
    return lambda column: all(test(value) for value in column.values())
