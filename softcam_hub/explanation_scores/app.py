"""The page of the Space, which turns a table with one row per image into scores."""

import csv
import io
from pathlib import Path

import evaluate
import gradio as gr

EXAMPLE = """\
confidence,kept,removed,coherency,complexity
0.91,0.88,0.12,0.95,0.21
0.64,0.70,0.33,0.90,0.30
0.80,0.55,0.08,0.82,0.17
"""

INTRODUCTION = """
# Explanation scores

How faithful and how well localised are the heat maps of an image classifier? Paste or upload a CSV with one row per
image and a header naming its columns; any subset will do. `confidence`, `kept` and `removed` are the probabilities of
the predicted class on the image x, on E⊙x and on (1 - E)⊙x, for a heat map E in [0, 1]. `coherency` and `complexity`
complete ADCC; `iou` is the overlap of the two top classes' regions. `pointing_game`, `hit_rate`, `iou_otsu`,
`localization_precision`, `activation_precision` and `activation_sensitivity` compare a map with an annotation. All of
them lie in [0, 1]; the scores are in percent. `causal_rank` and `causal_linear` are correlations of a map with what
changes when parts of the image are gone, and `idle_share` is the share of the map on parts whose removal changes
nothing. `largest_evidence` and `annotated` (1 or 0) give the share of false alarms.

In Python, the same module takes the maps themselves, and computes these numbers, PxAP, MaxBoxAccV2 and the reliability
of cells from them:
`evaluate.load("<this space>").compute(maps=maps, second_maps=second_maps, masks=masks)`.
"""


def read_csv(text: str) -> dict[str, list[float]]:
    """Read columns of numbers by their name in the header."""
    rows = [row for row in csv.reader(io.StringIO(text.lstrip("\ufeff"))) if row]
    if len(rows) < 2:
        raise ValueError("expected a header with the names of the columns, and at least one row of numbers")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        raise ValueError(f"every column must have a name of its own, got {', '.join(header)}")
    return dict(zip(header, map(list, zip(*numbers(rows[1:], header), strict=True)), strict=True))


def numbers(rows: list[list[str]], header: list[str]) -> list[list[float]]:
    """Turn rows into numbers, or raise an error that names the cell."""
    values = []
    for place, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {place} has {len(row)} cells, but the header names {len(header)} columns")
        for name, cell in zip(header, row, strict=True):
            if not is_number(cell):
                raise ValueError(f"row {place}, column {name}: {cell!r} is not a number")
        values.append([float(cell) for cell in row])
    return values


def is_number(cell: str) -> bool:
    """Tell whether the text of a cell is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def score(text: str) -> list[list[str | float]]:
    """Return rows of score and percent."""
    try:  # every request has a module of its own, because a module accumulates its inputs
        module = evaluate.load(str(Path(__file__).with_name("explanation_scores.py")), keep_in_memory=True)
        return [[name, round(value, 2)] for name, value in module.compute(**read_csv(text)).items()]
    except ValueError as error:
        raise gr.Error(str(error)) from error


def read_file(path: str | None) -> str:
    """Read an uploaded file."""
    return Path(path).read_text(encoding="utf-8") if path else ""


with gr.Blocks(title="Explanation scores") as demo:
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column():
            values = gr.Textbox(EXAMPLE, label="One row per image", lines=8, max_lines=20)
            upload = gr.File(label="or a CSV file", file_types=[".csv"], type="filepath")
            button = gr.Button("Score", variant="primary")
        results = gr.Dataframe(headers=["score", "percent"], label="Scores", interactive=False)
    upload.upload(read_file, upload, values, api_name=False)  # type: ignore[arg-type]  # gradio takes False, too
    button.click(score, values, results, api_name="score")

if __name__ == "__main__":
    demo.launch()
