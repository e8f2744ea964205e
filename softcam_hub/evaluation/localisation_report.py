"""Write the parts of rows about localisation that have more than one number: by size, evidence, and cells by mass."""

from itertools import pairwise

from .localisation_rows import BY_SIZE, SIZES, Row
from .report import COLUMNS, markdown


def localisation_tables(rows: list[Row]) -> str:
    """Format the tables of `localisation.md`; "" where the rows have nothing for them."""
    sections = (_by_size(rows), _evidence(rows), _reliability(rows))
    return "\n".join(section for section in sections if section)


def _by_size(rows: list[Row]) -> str:
    """Format the scores on images with small, medium and large annotations."""
    rows = [row for row in rows if "by_size" in row]
    names = [name for name in BY_SIZE if any(name in row["by_size"][size] for row in rows for size in SIZES)]
    if not names:
        return ""
    header = ["explainer", "explains", *(f"{_heading(name)}: {size}" for name in names for size in SIZES)]
    body = [
        [row["explainer"], row["explains"]]
        + [_cell(row["by_size"][size].get(name), ".1f") for name in names for size in SIZES]
        for row in rows
    ]
    (first, second), sizes = rows[0]["by_size"]["limits"], [rows[0]["by_size"][size]["images"] for size in SIZES]
    return (
        f"## By size of the annotation\n\nPercent. Small annotations cover up to {first:.2g} % of an image "
        f"({sizes[0]} images), medium ones up to {second:.2g} % ({sizes[1]}), large ones more ({sizes[2]}).\n\n"
    ) + markdown(header, body)


def _evidence(rows: list[Row]) -> str:
    """Format the evidence on images with and without an annotation."""
    rows = [row for row in rows if "evidence" in row]
    if not rows:
        return ""
    groups, names = {"annotated": "annotated", "unannotated": "not annotated"}, ("mean", "largest")
    header = ["explainer", "explains", *(f"{name}, {text}" for name in names for text in groups.values())]
    body = [
        [row["explainer"], row["explains"]]
        + [_cell(row["evidence"][group].get(name), ".3g") for name in names for group in groups]
        for row in rows
    ]
    counts = [rows[0]["evidence"][group]["images"] for group in groups]
    return (
        "## Evidence on images with and without an annotation\n\n"
        "Mean and largest positive evidence of a map in its own unit, which differs between explainers. Averages are "
        f"over {counts[0]} annotated images, for the class that is localised, and over {counts[1]} others, for the "
        "most probable class that is not a label.\n\n"
    ) + markdown(header, body)


def _reliability(rows: list[Row]) -> str:
    """Format the share of annotated cells by their mass."""
    rows = [row for row in rows if "reliability" in row]
    if not rows:
        return ""
    body = []
    for row in rows:
        found = row["reliability"]
        pairs = zip(found["annotated"], found["cells"], strict=True)
        cells = [f"{share:.1f} ({count})" if count else "-" for share, count in pairs]
        body.append([row["explainer"], row["explains"], *cells])
    return (
        "## Annotated cells by their mass\n\n"
        "Percent of the cells of a bin that touch the annotation, and the number of cells. The mass of a cell is its "
        "share of the map times the probability of the class.\n\n"
    ) + markdown(["explainer", "explains", *format_bins(rows[0]["reliability"])], body)


def format_bins(reliability: Row) -> list[str]:
    """Return the headings of the bins of mass."""
    return [f"{low:g} to {high:g}" for low, high in pairwise([0, *reliability["borders"], 1])]


def _heading(name: str) -> str:
    """Return the heading of a column without its arrow."""
    return COLUMNS[name][0].rstrip(" ↑↓")


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
