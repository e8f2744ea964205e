"""Render model cards: fill `template.md` with what is recorded about a model.

- Every number of a card comes from a row: `metrics.json` of a run, or a line of `benchmarks/results/*.jsonl`.
  `check_card` finds numbers that do not.
- Until it is pushed, a card calls its repository `your-name/your-model`; `hub.push` writes the real name.
"""

import re
from importlib.resources import files
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from ...files import ABANDONED, check_replaceable, remove_drafts, write_text
from ...models.heads import BUILT_IN, HEADS, native_kinds
from ...models.label_kind import written_multi_label
from ...models.modeling import model_class
from .checks import check_card
from .escaping import as_code, as_text
from .local_paths import hide_local_path, is_hub_id
from .metadata import card_metadata, find_base_model, model_index
from .records import PICTURES, ModelRecord, Row, load_model_record
from .tables import (
    PLACEHOLDER_REPO,
    explanation_table,
    format_environment,
    format_score,
    format_settings,
    format_timing,
    score_table,
    scores_of,
)

MUCH = 2 / 3
"""Share of cancelled evidence from which a card warns: the terms are three times as large as their sum."""


CAUSAL = "causal_linear"
"""Score by which a card tells whether such maps follow what the network uses."""


def write_card(folder: str | Path, license: str | None = None, overwrite: bool = False) -> Path:
    """Write the card of a model folder, README.md, from the files in the folder. The card is checked first.

    Args:
        folder: Model folder with scores, recipe and pictures.
        license: Licence of the weights, as the Hub spells it; by default the one in the existing card.
        overwrite: Replace a README.md that differs from the card, perhaps because somebody has edited it.
    """
    file = Path(folder) / "README.md"
    check_replaceable(file, overwrite=True)
    existing = file.read_text(encoding="utf-8", errors="replace") if file.exists() else None
    record = load_model_record(folder, license or (existing and _stated_license(existing)))
    card = render_trained_card(record)
    if not overwrite and existing not in (None, card):
        raise FileExistsError(
            f"{file} exists already, and may hold your own text: --overwrite (overwrite=True) replaces it"
        )
    check_card(card, record.rows, {path.name for path in file.parent.iterdir()})
    remove_drafts(file.parent, older_than=ABANDONED)
    write_text(file, card)
    return file


def _stated_license(card: str) -> str | None:
    """Return the licence that a card states, or None if it states none or cannot be read."""
    try:
        stated = getattr(ModelCard(card, ignore_metadata_errors=True).data, "license", None)
    except (ValueError, yaml.YAMLError):
        return None
    return stated if isinstance(stated, str) and stated != "unknown" else None


def render_trained_card(record: ModelRecord, name: str = "", note: str = "") -> str:
    """Render the card of a trained model.

    Args:
        record: Everything that the card says about the model.
        name: Title of the card; by default the architecture.
        note: Second paragraph of the card.
    """
    architecture = record.config["architecture"]
    family, _, backbone = architecture.partition("_")
    data = hide_local_path(str(record.metrics.get("data", "")))
    split, scores = scores_of(record.metrics)
    base_model = find_base_model(record.settings, backbone)
    license = record.license or getattr(base_model, "license", None) or "unknown"
    metadata = card_metadata(
        family,
        license,
        getattr(base_model, "hf_hub_id", None),
        [data] if is_hub_id(data) else [],
        name or architecture,
        model_index(data or "unnamed", split, scores, record.explanations),
    )
    seed, error = record.settings.get("seed"), scores.get("completeness_error")
    context = {
        "trained": True,
        "title": as_text(name or architecture),
        "note": note,
        "data": as_code(data),
        "generated": _is_generated(data),
        "license": license,
        "split": split,
        "seed": None if seed is None else as_text(seed),
        "scores": score_table(scores),
        "error": None if error is None else format_score("completeness_error", error),
        **_family_text(family),
        "cancelled": _percent_that_cancels(scores),
        "causal": _what_removal_says(record.explanations),
        **_imports(family, str((record.config.get("model_args") or {}).get("head", ""))),
        **_model_text(record),
        **explanation_table(record.explanations),
    }
    return _render(metadata, context)


def _model_text(record: ModelRecord) -> Row:
    """Return what a card says about the model and its training."""
    config = record.config
    labels = config.get("label_names") or config.get("id2label", {}).values()
    return {
        "architecture": as_code(config["architecture"]),
        "several": written_multi_label(config),
        "classes": [as_text(label) for label in labels],
        "input_size": ", ".join(map(str, config["pretrained_cfg"]["input_size"])),
        "has_colour": config["pretrained_cfg"]["input_size"][0] == 3,
        "place_of_cells": _place_of_cells(record),
        "pictures": [(PICTURES[Path(file).name], file) for file in record.pictures],
        "place": PLACEHOLDER_REPO,
        "timm_place": f"hf-hub:{PLACEHOLDER_REPO}",
        "settings": format_settings(record.settings),
        "recipe": bool(record.settings) and not record.trainer,
        "trainer": as_code(record.trainer),
        "environment": format_environment(record.metrics),
    }


def _percent_that_cancels(scores: Row) -> str:
    """Return the percentage of the evidence that cancels where it is most of it, and nothing otherwise."""
    share = scores.get("cancelled_share")
    return format_score("cancelled_share", share) if share is not None and share > MUCH else ""


def _what_removal_says(rows: list[Row]) -> Row | None:
    """Return the correlation of evidence and the effect of removal with its interval, or None where it is unknown."""
    for row in rows:
        value, ends = row.get(CAUSAL), row.get(f"{CAUSAL}_interval")
        if row.get("explains") == "model" and row.get("explainer") in native_kinds() and value is not None and ends:
            texts = [f"{number:.2f}" for number in (value, *ends)]
            return dict(zip(("value", "low", "high"), texts, strict=True)) | {"follows": ends[0] > 0}
    return None


def _place_of_cells(record: ModelRecord) -> str:
    """Say where the cells of the maps look."""
    try:
        alignment = record.alignment
    except ValueError:
        return (
            "The `alignment` in `config.json` cannot be read, so that the model does not load: remove the entry, and "
            "measure it with `softcam_hub.measure_alignment`."
        )
    down, right = record.distances
    parts = []
    if down is not None:
        parts.append(f"{abs(down):.2f} cells {'above' if down < 0 else 'below'}")
    if right is not None:
        parts.append(f"{abs(right):.2f} cells {'left' if right < 0 else 'right'} of")
    if alignment is None or not parts:
        return (
            "Where the cells of this model look was not measured, so that heat maps show them as squares that fill the "
            "image."
        )
    unknown = "" if len(parts) == 2 else "; along the other axis it was not measured"
    return (
        f"Heat maps show each cell where it looks, as measured on this model: {' and '.join(parts)} the middle of its "
        f"square{unknown}."
    )


def render_family_card(row: Row, timings: list[Row]) -> str:
    """Render the card of an architecture of which no weights are released.

    Args:
        row: Row of benchmarks/results/families.jsonl, which `tools.render_cards --measure` writes.
        timings: Rows of benchmarks/results/heads.jsonl for this architecture.
    """
    context = {
        **row,
        **_family_text(row["family"]),
        **_imports(row["family"]),
        "trained": False,
        "input_size": f"3, {row['image_size']}, {row['image_size']}",
        "has_colour": True,
        "cancelled": "",
        "causal": None,
        "place_of_cells": "",
        "title": row["model"],
        "cls": model_class(row["family"]).__name__,
        "pictures": [],
        "timings": [format_timing(timing) for timing in timings],
        "timed_where": format_environment(timings[0]) if timings else "",
        "place": "my-model",
        "timm_place": "local-dir:my-model",
        "explanations": [],
        "generated": False,
    }
    return _render(card_metadata(row["family"], row["license"], row["base_model"], row["datasets"]), context)


def _family_text(family: str) -> Row:
    """Return what the head of a family says for its card: texts, and citations with its own first."""
    head = HEADS[family]
    citations = dict.fromkeys([head.card.citation, *(other.card.citation for other in BUILT_IN)])
    return {
        "meaning": head.card.meaning or head.map_kinds[0].statement,
        "cautions": head.card.cautions,
        "pretrained_text": head.card.pretrained,
        "softmax_or_sigmoid": head.multi_label,
        "citations": [citation for citation in citations if citation],
    }


def _imports(family: str, head: str = "") -> Row:
    """Return the import that makes a model known to timm.

    Args:
        family: Family of the head.
        head: Import path of a head that another package defines.
    """
    module = head.rpartition(".")[0]
    if not all(part.isidentifier() for part in module.split(".")):  # nothing that could end the code block
        module = ""
    registering = f"{module}  # registers the {family} head" if module else ""
    return {
        "head_module": module,
        "registering_import": registering or "softcam_hub  # registers the architecture with timm",
    }


def _is_generated(data: str) -> bool:
    from ...data.lesions import VARIANTS  # imports datasets, which takes a second

    return data in VARIANTS


def _render(metadata: ModelCardData, context: Row) -> str:
    template = files(__package__).joinpath("template.md").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(**context)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return f"---\n{metadata.to_yaml()}\n---\n\n{text.strip()}\n"
