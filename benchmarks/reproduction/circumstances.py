"""Tell how the rows of the reproduction came about: command, time, machine, seeds, and what is not run yet."""

from ..timing import Row
from .findings import Findings
from .studies import SMALL, STEEL
from .verdicts import SEEDS

HISTORY = """**Tolerance.** The same machine and versions give the same numbers. Another machine gives another run of
the same seed. Expect means within two of the standard deviations shown. A verdict may change if its numbers are
nearer to the limit than that.

**Added after the first rows.** At first, the sweep over λ only ran from scratch, from λ = 0.03 on, and the accuracy
fell at the smallest λ already. A smaller λ and the study *fine-tuning* were added then. The runs from scratch with
λ = 0.01 and 0.3, whose accuracy fell in the same way, were left out to save time. The rules were not changed then.
Later, all rules that say that one map is better than another became stricter: before, it was enough to be better in
every seed.
"""


def circumstances(findings: Findings) -> str:
    """Write the paragraphs on generated images and on photographs."""
    chains = [row for row in findings.reproduction if row["kind"] == "chain"]
    generated = [row for row in chains if row["study"] in SMALL]
    if not generated:
        return "The small variant has not been run yet: there are no rows.\n"
    where = sorted({f"{row['machine']}, torch {row['torch']}, timm {row['timm']}" for row in generated})
    threads = sorted({row["threads"] for row in generated})
    seeds = sorted({row["seed"] for row in generated})
    how = (
        f"A *chain* is one study with one seed. `make reproduce` ran {len(generated)} chains (seeds {_list(seeds)}) "
        f"side by side on all cores, with {_list(threads)} thread each. Their times add up to {_hours(generated)} "
        f"hours of a core, which includes pauses and interrupted runs. Machine and versions: {'; '.join(where)}. The "
        "symbol ± stands for the standard deviation over seeds.\n"
    )
    missing = [study for study in SMALL if study not in {row["study"] for row in generated}]
    left = [f"**Not run yet:** the studies {_list(missing)}.\n"] if missing else []
    return "\n".join([how, photographs(findings.reproduction), HISTORY, *left])


def photographs(rows: list[Row]) -> str:
    """Write the paragraph on photographs.

    Args:
        rows: Rows of all studies.
    """
    rows = [row for row in rows if row["study"] in STEEL]
    if not rows:
        return "**Photographs.** The studies on photographs are not run yet.\n"
    seeds = {name: sorted({row["seed"] for row in rows if row["study"] == name}) for name in STEEL}
    trained = [row for row in rows if row["kind"] == "training"]
    ran = "; ".join(f"*{name}* with {_counted('seed', found)}" for name, found in seeds.items() if found)
    sentences = [
        f"`make reproduce-steel` ran {ran}. Training took {_hours(trained)} hours by the clock in all, with one "
        "thread or two, and often beside other programs."
    ]
    if any(0 < len(found) < SEEDS for found in seeds.values()):
        sentences.append(f"A study with fewer than {SEEDS} seeds is shown, and decides nothing.")
    missing = [f"*{name}*" for name, found in seeds.items() if not found]
    if missing:
        sentences.append(f"Not run yet: {', '.join(missing)}.")
    return f"**Photographs.** {' '.join(sentences)}\n"


def _hours(rows: list[Row]) -> str:
    return f"{sum(row['seconds'] for row in rows) / 3600:.1f}"


def _list(values: list[str] | list[int]) -> str:
    return ", ".join(map(str, values))


def _counted(noun: str, values: list[int]) -> str:
    return f"{noun}{'s' * (len(values) > 1)} {_list(values)}"
