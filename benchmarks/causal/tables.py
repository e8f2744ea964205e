"""Render which explainers name a known reason, for docs/scores.md."""

from benchmarks.timing import Row
from softcam_hub.evaluation.report import markdown

COLUMNS = {
    "evidence_is_reason": ("reason first ↑", 100, 0),
    "causal_linear": ("linear correlation ↑", 1, 2),
    "causal_rank": ("rank correlation ↑", 1, 2),
    "idle_share": ("idle parts ↓", 100, 1),
    "background_share": ("background ↓", 100, 1),
}
"""Name in a row -> title, factor and digits."""

EXPLAINED = {"model": "the model itself", "vanilla": "its teacher"}


def causal_table(rows: list[Row]) -> str:
    """Render one line per network and explainer: how often the reason comes first, and the causal scores."""
    body = []
    for row in rows:
        cells = [_cell(row, name, factor, digits) for name, (_, factor, digits) in COLUMNS.items()]
        body.append([row["data"], f"`{row['explainer']}`", f"`{row['recipe']}`, {EXPLAINED[row['explains']]}", *cells])
    networks = "\n".join(f"- {_network(row)}" for row in _one_per_network(rows))
    return (
        f"95 % intervals over images in brackets; one run of each network, seed 0, torch {rows[0]['torch']}.\n\n"
        f"{networks}\n\n" + markdown(["reason", "map", "explains", *(title for title, _, _ in COLUMNS.values())], body)
    )


def _one_per_network(rows: list[Row]) -> list[Row]:
    return list({(row["data"], row["recipe"], row["explains"]): row for row in rows}.values())


def _network(row: Row) -> str:
    """Say what the removal of parts says about a network itself."""
    text = (
        f"`{row['recipe']}`, {EXPLAINED[row['explains']]}, on `{row['data']}`: {100 * row['accuracy']:.0f} % of the "
        f"images right, {row['images']} that count, in {100 * row['effect_is_reason']:.0f} % of which the reason has "
        "the largest effect"
    )
    idle = row.get("lesions_without_effect")
    return text if idle is None else f"{text}, and in {100 * idle:.0f} % all lesions together have none"


def _cell(row: Row, name: str, factor: int, digits: int) -> str:
    if name not in row:
        return "-"
    ends = [f"{factor * end:.{digits}f}" for end in row.get(f"{name}_interval", [])]
    return f"{factor * row[name]:.{digits}f}" + (f" [{', '.join(ends)}]" if ends else "")


def causal_speed_table(rows: list[Row]) -> str:
    """Say in a sentence how long the causal study takes."""
    row = rows[0]
    return (
        f"The causal scores of {row['images']} images with {len(row['explainers'])} explainers of the shipped model "
        f"and of its vanilla classifier took {row['minutes']:.1f} minutes with {row['threads']} thread "
        f"({row['machine']}, torch {row['torch']})."
    )
