"""Render the tables of docs/alignment.md from rows."""

import statistics

from benchmarks.timing import Row
from softcam_hub.evaluation.report import COLUMNS, markdown


def checks_table(rows: list[Row]) -> str:
    """Render one line per network: the measured offset, and those of two independent experiments."""
    body = [
        [
            f"{row['network']} ({row['accuracy']:.1%})",
            _measured(row),
            _pair(row["best_offset"]) + _verdict(row["best_agrees"]),
            _pair(row["blob_offset"]) + _verdict(row["blob_agrees"]),
            _change(row["habit pointing game"], row["best pointing game"]),
            _change(row["habit mass inside"], row["best mass inside"]),
        ]
        for row in rows
    ]
    return (
        "Offsets are in cells, down and right; those in brackets do not count. A tick stands for at most 0.1 cell of "
        "difference along the axes that count. The "
        "networks were trained on 2,000 generated images (recipe `lesions-demo`, one run each; the one at stride 32 on "
        "1,000 images of 448 pixels for two epochs), the offsets measured on 32 validation images, and the rest on the "
        "diseased of 240 test images.\n\n"
    ) + markdown(
        [
            "network (accuracy)",
            "measured",
            "where most of the heat lies in the lesions",
            "a spot that is moved",
            "pointing game, as squares → best offset",
            "activation precision, as squares → best offset",
        ],
        body,
    )


def real_weights_table(rows: list[Row]) -> str:
    """Render one line per stride and kind of images."""
    body = [
        [
            str(row["stride"]),
            row["images"],
            _pair(row["offset"]),
            ", ".join(f"{value:.2f}" for value in row["correlation"]),
            ", ".join(f"{value:.2f}" for value in row["spread"]),
            "yes" if all(row["accepted"]) else "no",
        ]
        for row in rows
    ]
    return (
        f"`{rows[0]['architecture']}` with ImageNet weights at 224 pixels, {rows[0]['count']} photographs "
        f"of steel (NEU-DET) and {rows[1]['count']} images of noise with the spectrum of photographs. Offsets are in "
        "cells, down and right.\n\n"
    ) + markdown(["stride", "images", "offset", "correlation", "spread", "counts"], body)


def gains_table(rows: list[Row]) -> str:
    """Render one line per study of the reproduction: what its maps gain where their cells look, and how many lose."""
    names = ("pointing_game", "hit_rate", "activation_precision", "localization_precision")
    place = ("study", "seed", "run", "explainer")
    drawn = {tuple(row.get(name) for name in place): row for row in rows if row["kind"] == "explanation"}
    pairs: dict[str, list[tuple[Row, Row]]] = {}
    for row in rows:
        aligned = drawn.get(tuple(row.get(name) for name in place))
        if row["kind"] == "not aligned" and aligned is not None:
            pairs.setdefault(row["study"], []).append((row, aligned))
    body = []
    for study, maps in pairs.items():
        gains = [[aligned[name] - squares[name] for squares, aligned in maps] for name in names]
        cells = [f"{statistics.fmean(gain):+.1f} ({sum(one < 0 for one in gain)})" for gain in gains]
        body.append([study, str(len(maps)), *cells])
    return (
        "Mean gain in points of all maps that were moved in the studies of the reproduction, each run, explainer and "
        "seed once, and in brackets the number of maps that lose.\n\n"
    ) + markdown(["study", "maps", *(COLUMNS[name][0] for name in names)], body)


def steel_table(rows: list[Row]) -> str:
    """Render one line per stride and method: scores of maps drawn as squares and of aligned maps."""
    body = []
    for habit, aligned in zip(rows[::2], rows[1::2], strict=True):
        scores = [_gain(habit, aligned, name) for name in ("pointing_game", "mass")]
        body.append([str(habit["stride"]), f"`{habit['method']}`", _pair(habit["offset"]), *scores])
    accuracies = " and ".join(f"{row['accuracy']:.1f} %" for row in rows[:: len(rows) // 2])
    told = any("mass_gain" in row for row in rows)
    gain = ", and the mean gain on the same images with its 95 % interval" if told else ""
    return (
        f"{rows[0]['images']} test photographs of four classes of defects, whose boxes cover {rows[0]['area']:.0f} % "
        f"of the image; `tf_efficientnet_lite0` with frozen ImageNet weights and a fitted classifier (accuracy on six "
        f"classes at the two strides: {accuracies}). Scores are percentages, drawn as squares → aligned{gain}.\n\n"
    ) + markdown(["stride", "map", "offset", "pointing game", "activation precision"], body)


def _gain(habit: Row, aligned: Row, name: str) -> str:
    text = f"{habit[name]:.1f} → {aligned[name]:.1f}"
    if f"{name}_gain" not in aligned:  # rows of earlier releases
        return text
    low, high = aligned[f"{name}_gain_interval"]
    return f"{text} ({aligned[f'{name}_gain']:+.1f} [{low:+.1f}, {high:+.1f}])"


def _pair(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def _measured(row: Row) -> str:
    pairs = zip(row["offset"], row["accepted"], strict=True)
    return ", ".join(f"{value:+.2f}" if counts else f"({value:+.2f})" for value, counts in pairs)


def _verdict(agrees: bool | None) -> str:
    return "" if agrees is None else " ✓" if agrees else " ✗"


def _change(before: float, after: float) -> str:
    return f"{100 * before:.1f} → {100 * after:.1f} %"
