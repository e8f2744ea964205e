"""Render the table of recipes for generated lesions: means and spread over seeds."""

import statistics

from softcam_hub.evaluation.report import markdown

from .timing import Row

LESIONS = {
    "test_accuracy": "accuracy",
    "test_auc": "AUC",
    "test_teacher_accuracy": "teacher",
    "test_disagreement": "disagreement",
    "test_calibration_error": "calibration error",
    "test_sparseness": "map sparseness (Gini)",
    "seconds": "seconds",
}


def lesions_table(rows: list[Row]) -> str:
    """Render one line per recipe: mean and spread over seeds of the scores on the test split, and of the seconds."""
    body = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        of = [row for row in rows if row["recipe"] == recipe]
        scores = [format_scores([row[name] for row in of if name in row], name) for name in LESIONS]
        body.append([f"`{recipe}`", f"`{of[0]['model']}`", *scores])
    trained = [row for row in rows if "torch" in row]
    where_run = sorted({f"{row['device']}, torch {row['torch']}, threads: {row['threads']}" for row in trained})
    return (
        f"Scores on 600 generated test images of four classes (200 for the demo); {name_seeds(trained)}. *Mean "
        "colour* is a linear model on the mean colour of an image. *Teacher* is the vanilla head that CAPE learnt "
        f"from. Seconds were measured on a machine that did other work too: {'; '.join(where_run)}.\n\n"
    ) + markdown(["recipe", "model", *LESIONS.values()], body)


def name_seeds(rows: list[Row]) -> str:
    """Say which runs stand behind the numbers, and name the recipes with fewer seeds than the others."""
    seeds: dict[str, list[int]] = {}
    for row in rows:
        seeds.setdefault(row["recipe"], []).append(row["seed"])
    most = sorted(max(seeds.values(), key=len))
    if len(most) == 1:
        return f"one run each with seed {most[0]}"
    fewer = [f"`{recipe}` ({', '.join(map(str, sorted(of)))})" for recipe, of in seeds.items() if len(of) < len(most)]
    text = f"means over the seeds {', '.join(map(str, most))} with the standard deviation between them"
    return f"{text}; fewer seeds: {', '.join(fewer)}" if fewer else text


def format_scores(values: list[float], name: str) -> str:
    """Return the mean of some runs, with its spread where there are several."""
    if not values:
        return "-"
    mean, scale = statistics.fmean(values), 100 if "accuracy" in name else 1
    digits = 0 if name == "seconds" else 1 if scale == 100 else 3
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * mean:.{digits}f}{spread}{' %' if scale == 100 else ''}"
