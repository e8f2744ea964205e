"""Rows of the reproduction, made by hand, and values of the images behind them."""

import numpy as np

SEEDS = (0, 1, 2)
DATA = {"screening": "screening", "marks": "marks"}


def rows(study, kind, values, **columns):
    """A row per seed; `values` are columns -> one number per seed, or one for all."""
    spreads = {name: value if isinstance(value, tuple) else (value,) * 3 for name, value in values.items()}
    return [
        {
            "study": study,
            "seed": seed,
            "kind": kind,
            **columns,
            **{name: value[seed] for name, value in spreads.items()},
        }
        for seed in SEEDS
    ]


def training(run, accuracy, auc=0.99, study="lesions", **more):
    values = {"test_accuracy": accuracy, "test_auc": auc, "seconds": 60.0, **more}
    columns = {"run": run, "data": DATA.get(study, "lesions"), "model": run, "images": 100, "epochs": 3}
    return rows(study, "training", {"l1": 0.0, **values}, **columns)


def explained(run, explainer, study="lesions", **values):
    return rows(study, "explanation", values, run=run, explainer=explainer, explains="model", images=8, annotated=6)


def valued(explanations, measure, column, noise=0.0, images=40, factor=100, **where):
    """Rows of values for rows of explanations: their means, and deviations of the images from these.

    Args:
        explanations: Rows of explanations.
        measure: Name of the measure in these rows.
        column: Name of the measure in rows of values.
        noise: Deviation of the odd images from the mean; the even ones deviate as much in the other direction.
        images: Number of images.
        factor: Unit of the rows in units of the values.
    """
    found = []
    for row in explanations:
        deviations = noise * np.tile([-1.0, 1.0], images // 2)
        what = {name: row[name] for name in ("study", "seed", "run", "explainer", "explains")}
        lists = {"label": [0] * images, column: ((row[measure] + deviations) / factor).tolist()}
        found.append({**what, "kind": "values", **lists, **where})
    return found


def joined(*parts):
    """Join rows of values of the same explanations that have different measures."""
    return [{name: value for row in same for name, value in row.items()} for same in zip(*parts, strict=True)]
