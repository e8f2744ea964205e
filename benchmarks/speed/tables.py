"""Write the tables of speed: time and memory, beside timm, the CAPE authors' formula and other libraries."""

import math

from softcam_hub.evaluation.report import markdown

from ..timing import Row

COLUMNS = {
    "softcam logits": "SoftCAM, logits only",
    "softcam explained": "SoftCAM, all maps",
    "cape explained": "CAPE, all maps",
    "control": "vanilla again (control)",
}
"""Comparison in a row -> heading of its column."""

SIDES = ("ours", "captum", "pytorch-grad-cam", "torchcam")
IN_TURN = "ours / captum"
"""Column of methods that were measured in turn with captum, and not with a forward pass."""


def with_quartiles(row: Row, name: str, form: str) -> str:
    """Format a median with its quartiles in brackets."""
    low, high = row[f"{name}_quartiles"]
    return f"{row[name]:{form}} ({low:{form}} to {high:{form}})"


def where(rows: list[Row]) -> str:
    """Describe versions, machine and threads of a measurement; different ones of its rows are all named."""
    columns = {"torch": "torch ", "timm": "timm ", "machine": "", "threads": "torch threads: "}
    return ", ".join(
        f"{title}{' and '.join(dict.fromkeys(str(row[name]) for row in rows))}" for name, title in columns.items()
    )


def heads_table(rows: list[Row]) -> str:
    """Render the costs of the heads: of whole models, and of CAPE's formula."""
    formula = [row for row in rows if row["comparison"] == "cape formula"]
    many = [row for row in rows if row["comparison"].startswith("many classes")]
    tables = [models_table([row for row in rows if row["comparison"] in COLUMNS]), formula_table(formula)]
    return "\n".join([*tables, many_classes_table(many)] if many else tables)


def models_table(rows: list[Row]) -> str:
    """Render one line per model and batch: time of the vanilla forward, and of each variant as a multiple."""
    cases: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["model"], row["batch"]), {})[row["comparison"]] = row
    body = [
        [
            f"`{model}` at {case['control']['image_size']} px, batch {batch}",
            f"{1000 * case['control']['b_seconds']:.0f} ms",
            *(with_quartiles(case[comparison], "ratio", ".3f") for comparison in COLUMNS),
        ]
        for (model, batch), case in cases.items()
    ]
    pairs = sorted({row["pairs"] for row in rows})
    return (
        "Time of one forward, as a multiple of the vanilla timm forward with the same (random) weights: "
        f"median of {pairs[0]} to {pairs[-1]} interleaved pairs, quartiles in brackets. The control is a copy "
        f"of the vanilla model: its difference from 1 is noise. {where(rows)}.\n\n"
    ) + markdown(["model", "vanilla", *COLUMNS.values()], body)


def many_classes_table(rows: list[Row]) -> str:
    """Render one line per batch: what `explain` and all maps cost where the classes are many."""
    cases: dict[int, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row["batch"], {})[row["comparison"].removeprefix("many classes: ")] = row
    names = {"explain": "`explain(images, top_k=1)`", "all maps": "all maps", "control": "vanilla again (control)"}
    body = [
        [f"batch {batch}", f"{1000 * case['control']['b_seconds']:.0f} ms"]
        + [with_quartiles(case[name], "ratio", ".3f") for name in names]
        for batch, case in cases.items()
    ]
    row = rows[0]
    return (
        f"`softcam_{row['model']}` with {row['classes']:,} classes, as a multiple of the vanilla timm forward "
        "with the same (random) weights. `explain` computes the maps of the explained classes alone. "
        f"{where(rows)}.\n\n"
    ) + markdown(["", "vanilla", *names.values()], body)


def formula_table(rows: list[Row]) -> str:
    """Render one line per evidence shape and pass: the authors' formula beside ours."""
    return (
        "CAPE from evidence to log-probabilities (the 1x1 evidence layer is on neither side): `CAPEHead` beside the "
        "authors' formula, which forms a (B, C, HW, HW) tensor, and beside its own formula with a backward pass by "
        f"autograd. Peak memory is the rise of a fresh process. {where(rows)}.\n\n"
    ) + markdown(
        ["evidence", "the other", "`CAPEHead`", "time ratio", "CPU time ratio", "memory, the other", "ours"],
        [formula_line(row) for row in rows],
    )


def formula_line(row: Row) -> list[str]:
    """Write the cells of one shape and pass."""
    shape = "×".join(str(size) for size in (row["batch"], row["classes"], *row["map_size"]))
    label = f"{shape}, {row['pass']}, {'by autograd' if row.get('formula') == 'autograd' else 'the authors'}"
    if "not_run" in row:
        return [label, row["not_run"], *["-"] * 5]
    return [
        label,
        *(f"{three_digits(1000 * row[f'{side}_seconds'])} ms" for side in "ab"),
        with_quartiles(row, "ratio", ".3g"),
        with_quartiles(row, "cpu_ratio", ".3g"),
        *(mebibytes(row[f"{side}_peak_mib"]) for side in "ab"),
    ]


def mebibytes(value: float | None) -> str:
    """Format a size in MiB."""
    return "not measured" if value is None else f"{three_digits(value)} MiB"


def three_digits(value: float) -> str:
    """Format a number with three digits, or with all digits before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def alignment_speed_table(rows: list[Row]) -> str:
    """Render one line per comparison: aligned beside unaligned heat maps, and measuring beside a forward."""
    body = [
        [
            f"{row['a']} / {row['b']}",
            f"`{row['model']}` at {row['image_size']} px, {row['batch']} image{'s'[: row['batch'] > 1]}",
            with_quartiles(row, "ratio", ".2f"),
            with_quartiles(row, "cpu_ratio", ".2f"),
            f"{row['a_cpu_seconds']:.2g} s",
        ]
        for row in rows
    ]
    pairs = sorted({row["pairs"] for row in rows})
    return (
        f"Ratios of time: medians of {pairs[0]} to {pairs[-1]} interleaved pairs, quartiles in brackets, on a machine "
        f"that did other work too. The last column is the CPU time of the first side. {where(rows)}.\n\n"
    ) + markdown(["what / beside what", "model and images", "time ratio", "CPU time ratio", "CPU time"], body)


def import_table(rows: list[Row]) -> str:
    """Render the time that this package adds to the import of timm."""
    row = rows[0]
    cells = [f"{row['b_seconds']:.2f} s", f"{row['a_seconds']:.2f} s", with_quartiles(row, "added_seconds", ".2f")]
    return (
        f"Seconds to import, in fresh processes: medians of {row['runs']} runs, quartiles in brackets. Python "
        f"{row['python']}, {where(rows)}.\n\n"
    ) + markdown([f"`{row['b']}`", f"`{row['a']}`", "added"], [cells])


TRAINING_COLUMNS = {"preparation_seconds": "s", "uncached_mib": "MiB", "cached_mib": "MiB", "post_fit_seconds": "s"}
"""Columns of rows of post-fitting that older rows do not have, with their unit."""


def training_table(rows: list[Row]) -> str:
    """Render one line per setting: an epoch of post-fitting with and without the cache."""
    body = [
        [
            f"`{row['model']}` at {row['image_size']} px, {row['images']} images, {row['classes']} classes",
            *(f"{row[f'{side}_seconds']:.2f} s" for side in ("uncached", "cached")),
            f"{row['ratio']:.0f} ({row['ratio_quartiles'][0]:.0f} to {row['ratio_quartiles'][1]:.0f})",
            *(f"{row[column]:.0f} {unit}" if column in row else "-" for column, unit in TRAINING_COLUMNS.items()),
        ]
        for row in rows
    ]
    pairs = ", ".join(str(pairs) for pairs in sorted({row["pairs"] for row in rows}))
    header = [
        "model",
        "computed anew",
        "cached",
        "ratio",
        "preparation",
        "memory, anew",
        "memory, cached",
        "`post_fit`",
    ]
    return (
        "An epoch of post-fitting with the features of the frozen backbone computed anew, and read from the "
        f"cache: medians of interleaved pairs ({pairs}), quartiles in brackets. *Preparation* is what a run with a "
        "cache does once before its first epoch, with the features of the validation images. *Memory* is the rise "
        "while a run is prepared and trained for an epoch. *`post_fit`* is the whole of "
        f"`softcam_hub.post_fit` for the same images. {where(rows)}.\n\n"
    ) + markdown(header, body)


def training_steps_table(rows: list[Row]) -> str:
    """Render one line per model and head: a training step, and that of a copy of the vanilla model."""
    names = {
        "control": "vanilla again (control)",
        "softcam": "SoftCAM",
        "cape": "CAPE",
        "penalty": "SoftCAM with a penalty",
        "teacher": "CAPE from scratch, with its teacher",
    }
    body = [
        [
            f"`{row['model']}` at {row['image_size']} px, batch {row['batch']}",
            names[row["comparison"]],
            with_quartiles(row, "ratio", ".3f"),
            with_quartiles(row, "cpu_ratio", ".3f"),
        ]
        for row in sorted(rows, key=lambda row: (row["model"], list(names).index(row["comparison"])))
    ]
    return (
        "A training step (forward, loss, backward, update of all weights) as a multiple of that of the vanilla timm "
        f"model: medians of {rows[0]['pairs']} interleaved pairs, quartiles in brackets. The control is a copy of the "
        f"vanilla model: its difference from 1 is noise. {where(rows)}.\n\n"
    ) + markdown(["model", "head", "time ratio", "CPU time ratio"], body)


def scales_table(rows: list[Row]) -> str:
    """Render one line per model and variant: explained forward passes and training steps beside the vanilla model."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["variant"]), {})[row["step"]] = row
    body = [
        [
            f"`{model}` at {steps['explained']['image_size']} px",
            variant,
            *(with_quartiles(steps[step], "cpu_ratio", ".2f") for step in ("explained", "training")),
        ]
        for (model, variant), steps in found.items()
    ]
    pairs = ", ".join(str(pairs) for pairs in sorted({row["pairs"] for row in rows}))
    return (
        "CPU time of `explain` for the most probable class beside a forward pass of the vanilla timm model, and of a "
        f"training step beside that of the vanilla model, batch {rows[0]['batch']}: medians of interleaved pairs "
        f"({pairs}), quartiles in brackets. {where(rows)}.\n\n"
    ) + markdown(["model", "maps", "explained", "training"], body)


def aims_table(heads: list[Row], explainers: list[Row], imports: list[Row], steps: list[Row]) -> str:
    """Render what this package wants to cost at most, what was measured, and whether that is so."""
    lines: list[tuple[str, float, list[float]]] = []  # what, largest value, median and quartiles

    def add(what: str, aim: float, row: Row, name: str = "ratio") -> None:
        lines.append((what, aim, [row[name], *row[f"{name}_quartiles"]]))

    for row in heads:
        if row["comparison"] == "many classes: explain":
            what = f"`explain(top_k=1)` of SoftCAM with {row['classes']:,} classes, batch {row['batch']}"
            add(f"{what}, beside vanilla", 1.02, row)
    for row in heads:
        if (
            row["comparison"] == "cape formula"
            and row["pass"] != "forward"
            and row.get("formula", "authors") == "authors"
        ):
            evidence = math.prod((row["batch"], row["classes"], *row["map_size"])) * 4 / 2**20
            what = f"memory of CAPE's head in training beside its evidence, {evidence:.2g} MiB, in multiples of that"
            lines.append((what, 4.0, [row["b_peak_mib"] / evidence] * 3))
    for row in explainers:
        if (row["method"], row["side"], row["batch"]) == ("the six and fd-cam", "ours", 8):
            add("seven closed forms together, batch 8, beside one forward", 1.12, row)
    for row in explainers:
        if row["side"] == IN_TURN:
            add(f"{row['method']}, batch {row['batch']}, beside captum", 1.0, row)
    for row in steps:
        if row["comparison"] in ("softcam", "cape"):
            name = {"softcam": "SoftCAM", "cape": "CAPE"}[row["comparison"]]
            add(f"training step of {name}, `{row['model']}`, beside vanilla", 1.03, row)
    add("seconds that the import adds to that of timm", 0.25, imports[0], "added_seconds")
    body = [
        [
            what,
            f"{aim:.2f}",
            f"{middle:.3g} ({low:.3g} to {high:.3g})" if low < high else f"{middle:.3g}",
            _met(*numbers),
        ]
        for what, aim, (middle, low, high) in lines
        for numbers in [(aim, low, high)]
    ]
    return markdown(["what", "at most", "measured", "met"], body).replace("---:", "---", 1)


def _met(aim: float, low: float, high: float) -> str:
    """Tell whether the middle half of the pairs is on one side of an aim."""
    return "yes" if high <= aim else "no" if low > aim else "undecided"


def threads_table(rows: list[Row]) -> str:
    """Render one line per number of busy processes: an update with threads that spin, and with threads that sleep."""
    body = [
        [
            f"{row['busy_processes']} busy processes beside it" if row["busy_processes"] else "quiet machine",
            *(f"{row[f'{way}_seconds']:.2f} s" for way in ("spinning", "sleeping")),
            f"{row['ratio']:.2f} ({row['ratio_quartiles'][0]:.2f} to {row['ratio_quartiles'][1]:.2f})",
        ]
        for row in rows
    ]
    return (
        "An update of a small network (batch 32, 128 pixels) with threads that spin while they wait, as torch has "
        f"them, and with threads that sleep: medians of {rows[0]['pairs']} interleaved pairs, quartiles in brackets. "
        f"{where(rows)}.\n\n"
    ) + markdown(["machine", "spinning", "sleeping", "ratio"], body)


def memory_table(rows: list[Row]) -> str:
    """Render one line per case: a step with memory that is returned when it is freed, and with memory that is kept."""
    body = [
        [
            f"{row['case']}: `{row['model']}` at {row['side']} px, batch {row['batch']}",
            *(f"{row[f'{way}_seconds']:.2f} s" for way in ("returned", "kept")),
            f"{row['ratio']:.2f} ({row['ratio_quartiles'][0]:.2f} to {row['ratio_quartiles'][1]:.2f})",
            *(f"{row[f'{way}_page_faults'] / 1000:,.0f}" for way in ("returned", "kept")),
            *(f"{row[f'{way}_megabytes']:,.0f}" for way in ("returned", "kept")),
        ]
        for row in rows
    ]
    header = [
        "case",
        "returned",
        "kept",
        "ratio",
        "thousand pages, returned",
        "kept",
        "most memory (MB), returned",
        "kept",
    ]
    return (
        "A step with freed memory that is returned to the system, as by default, and with memory that is kept: medians "
        f"of {rows[0]['pairs']} interleaved pairs of processes, quartiles in brackets. Pages are those that the system "
        f"handed out in a step. {where(rows)}.\n\n"
    ) + markdown(header, body)


def explainers_table(rows: list[Row]) -> str:
    """Render one line per method and batch: its cost here and with each peer, in forward passes."""
    cases: dict[tuple[str, int, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["model"], row["batch"], row["method"]), {})[row["side"]] = row
    body = []
    for (model, batch, method), case in cases.items():
        ratios = [with_quartiles(case[side], "ratio", ".3g") if side in case else "-" for side in (*SIDES, IN_TURN)]
        memory = ["-" if side not in case else mebibytes(case[side]["peak_mib"]) for side in SIDES[:3:2]]
        body.append([f"{method}, `{model}`, batch {batch}", *ratios, *memory])
    row, pairs = rows[0], [row["pairs"] for row in rows]
    return (
        f"Maps of one class per image as a multiple of one forward of the same batch at {row['image_size']} "
        f"px (random weights): medians of {min(pairs)} (the slowest) to {max(pairs)} interleaved pairs, "
        f"quartiles in brackets. Memory is the rise of a fresh process. {where(rows)}.\n\n"
    ) + markdown(["method", *SIDES, IN_TURN, "memory, ours", f"memory, {SIDES[2]}"], body)


def peer_table(rows: list[Row]) -> str:
    """Render one line per peer: the seconds for Table 1 of 64 images with the peer, and with this package."""
    body = [
        [
            f"{row['peer']}: {', '.join(row['methods'])}",
            *(f"{row[f'{side}_seconds']:.1f} s" for side in "ab"),
            with_quartiles(row, "ratio", ".2f"),
        ]
        for row in rows
    ]
    row = rows[0]
    return (
        f"AD, IC, ADD, ADCC and mIoU of {row['images']} images at {row['image_size']} px, `{row['model']}` "
        f"with random weights, batch {row['batch']}: medians of {row['pairs']} interleaved pairs, quartiles "
        f"in brackets. {where(rows)}.\n\n"
    ) + markdown(["peer and its methods", "with the peer", "`softcam-hub benchmark`", "ratio"], body)
