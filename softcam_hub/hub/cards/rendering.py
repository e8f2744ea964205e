"""`template.md` filled from rows.

- Every number of a card comes from a row: a run's `metrics.json`, a line of `benchmarks/results/*.jsonl`; `rules` finds
  those that do not.
- `library_name` is `transformers`. The Hub then shows visitors a snippet with `trust_remote_code`, which works with the
  code that lies in the repo. The snippet for `timm` would fail without `import softcam_hub`; the tag says timm too.
- Until it is pushed a card names its repo `your-name/your-model`; `hub.push` puts in the real name.
"""

import math
import re
import shlex
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model

from ...data.config import DataConfig
from ...files import ABANDONED, check_replaceable, remove_drafts, write_text
from ...models.heads import BUILT_IN, HEADS, native_kinds
from ...models.label_kind import written_multi_label
from ...models.modeling import model_class
from .checks import check_card
from .escaping import as_code, as_text
from .local_paths import hide_local_path, is_hub_id
from .records import PICTURES, ModelRecord, Row, load_model_record

PLACEHOLDER_REPO = "your-name/your-model"
"""What a card calls a repo that does not exist yet."""

SPLITS = ("test", "eval", "validation")
"""Prefixes of scores in `metrics.json`; the first that occurs is shown."""

NOT_SCORES = ("runtime", "_per_second", "_time")
"""How Trainer's names of durations end."""

BENCHMARK = {
    "explainers": "",
    "measures": "",
    "split": "test",
    "limit": None,
    "batch_size": 16,
    "shard_size": 32,
    "patch": None,
    "seed": 0,
}
"""Settings of a benchmark that a row tells -> their defaults."""

NOT_SETTINGS = ("output", "overwrite", "resume", "cache_dir", "workers", "trackers", "log_steps", "checkpoint_steps")
"""Settings that have no bearing on what is learnt."""


def write_card(folder: str | Path, license: str | None = None, overwrite: bool = False) -> Path:
    """Write the card of a model folder, README.md, from what lies in the folder; check it before it is written.

    Args:
        folder: Model folder with scores, recipe and pictures.
        license: Licence of the weights, as the Hub spells it. By default that of the card that is there.
        overwrite: Replace a README.md that differs from the card, perhaps because somebody has edited it.
    """
    file = Path(folder) / "README.md"
    check_replaceable(file, overwrite=True)
    there = file.read_text(encoding="utf-8", errors="replace") if file.exists() else None
    model = load_model_record(folder, license or (there and _stated_license(there)))
    card = render_trained_card(model)
    if not overwrite and there not in (None, card):
        raise FileExistsError(f"{file} is there already, perhaps with words of yours: --overwrite replaces it")
    check_card(card, model.rows, {path.name for path in file.parent.iterdir()})
    remove_drafts(file.parent, older_than=ABANDONED)
    write_text(file, card)
    return file


def _stated_license(card: str) -> str | None:
    """What a card says of the licence, if it says anything that can be read."""
    try:
        stated = getattr(ModelCard(card, ignore_metadata_errors=True).data, "license", None)
    except (ValueError, yaml.YAMLError):
        return None
    return stated if isinstance(stated, str) and stated != "unknown" else None


def render_trained_card(model: ModelRecord, name: str = "", note: str = "") -> str:
    """The card of a trained model.

    Args:
        model: what is known of it.
        name: the title, by default the architecture.
        note: what its first paragraph is followed by.
    """
    config, metrics, settings = model.config, model.metrics, model.settings
    family, _, backbone = config["architecture"].partition("_")
    title, data, scores = (
        name or config["architecture"],
        hide_local_path(str(metrics.get("data", ""))),
        _scores(metrics),
    )
    started = _started_from(settings, backbone)
    license = model.license or getattr(started, "license", None) or "unknown"
    split = next((split for split in SPLITS if any(key.startswith(f"{split}_") for key in metrics)), "")
    metadata = _metadata(family, license, getattr(started, "hf_hub_id", None), [data] if is_hub_id(data) else [])
    results = _results(data or "unnamed", split, scores, model.explanations)
    facts = {
        "trained": True,
        "title": as_text(title),
        "note": note,
        **_family_text(family),
        **_imports(family, str((config.get("model_args") or {}).get("head", ""))),
        "architecture": config["architecture"],
        "data": as_code(data),
        "several": written_multi_label(config),
        "classes": [as_text(name) for name in config.get("label_names") or config.get("id2label", {}).values()],
        "pictures": [(PICTURES[Path(file).name], file) for file in model.pictures],
        "image_size": config["pretrained_cfg"]["input_size"][-1],
        "place": PLACEHOLDER_REPO,
        "timm_place": f"hf-hub:{PLACEHOLDER_REPO}",
        "error": _of(scores, "completeness_error"),
        "split": split,
        "seed": settings.get("seed"),
        "scores": [(_words(name), _shown(name, value)) for name, value in scores.items()],
        "settings": _yaml(settings),
        "recipe": bool(settings) and not model.trainer,
        "trainer": model.trainer,
        "where": _where(metrics),
        "generated": _is_generated(data),
        "license": license,
        **_explanation_table(model.explanations),
    }
    return _render(metadata, facts, title, results)


def render_family_card(row: Row, timings: list[Row]) -> str:
    """The card of an architecture without weights of ours, from what `tools/render_cards.py` measured of it.

    Args:
        row: of benchmarks/results/families.jsonl.
        timings: of benchmarks/results/heads.jsonl, those of this architecture.
    """
    metadata = _metadata(row["family"], row["license"], row["base_model"], row["datasets"])
    facts = {
        **row,
        **_family_text(row["family"]),
        **_imports(row["family"], ""),
        "trained": False,
        "title": row["model"],
        "cls": model_class(row["family"]).__name__,
        "pictures": [],
        "timings": [_timing(timing) for timing in timings],
        "timed_where": _where(timings[0]) if timings else "",
        "place": "my-model",
        "timm_place": "local-dir:my-model",
        "explanations": [],
        "generated": False,
    }
    return _render(metadata, facts, row["model"], [])


def _family_text(family: str) -> Row:
    """Return what the head of a family says for its card: texts, and citations with its own first."""
    head = HEADS[family]
    meaning = head.card.meaning or head.map_kinds[0].statement
    citations = dict.fromkeys([head.card.citation, *(other.card.citation for other in BUILT_IN)])
    return {
        "meaning": meaning,
        "cautions": head.card.cautions,
        "pretrained_text": head.card.pretrained,
        "softmax_or_sigmoid": head.multi_label,
        "citations": [citation for citation in citations if citation],
    }


def _imports(family: str, head: str) -> Row:
    """Return the import that makes a model known to timm.

    Args:
        family: Family of the head.
        head: Import path of a head that another package defines, or "".
    """
    module = head.rpartition(".")[0]
    registering = f"{module}  # registers the {family} head" if module else ""
    return {
        "head_module": module,
        "registering_import": registering or "softcam_hub  # registers the architecture with timm",
    }


def _render(metadata: Row, facts: Row, name: str, results: list[EvalResult]) -> str:
    data = ModelCardData(**metadata, model_name=name if results else None, eval_results=results or None)
    loading = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    template = files(__package__).joinpath("template.md").read_text(encoding="utf-8")
    text = Environment(**loading).from_string(template).render(**facts)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n"


def _metadata(family: str, license: str, base_model: str | None, datasets: list[str]) -> Row:
    return {
        "license": license,
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "softcam-hub", family, "explainability", "class-activation-maps", "image-classification"],
        **({"base_model": base_model} if base_model else {}),
        **({"datasets": datasets} if datasets else {}),
    }


def _started_from(settings: Row, backbone: str) -> PretrainedCfg | None:
    """What timm says of the weights that training began with."""
    tag = str(settings.get("model", "")).partition(".")[2]
    if not settings.get("pretrained") or not is_model(backbone):
        return None
    return get_pretrained_cfg(f"{backbone}.{tag}" if tag else backbone)


def _is_generated(data: str) -> bool:
    from ...data.lesions import VARIANTS  # brings datasets, which takes a second

    return data in VARIANTS


def _scores(metrics: Row) -> Row:
    """The scores of the first split that has any, by their name without its prefix."""
    for split in SPLITS:
        found = {key.removeprefix(f"{split}_"): v for key, v in metrics.items() if key.startswith(f"{split}_")}
        found = {key: v for key, v in found.items() if _is_score(v) and not key.endswith(NOT_SCORES)}
        if found:
            return found
    return {}


def _is_score(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _of(scores: Row, name: str) -> str | None:
    return _shown(name, scores[name]) if name in scores else None


def _shown(name: str, value: float) -> str:
    if name.endswith(("accuracy", "disagreement")):
        return f"{100 * value:.1f} %"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("auc", "AUC")


def _yaml(settings: Row) -> str:
    told = {name: hide_local_path(value) for name, value in settings.items() if name not in NOT_SETTINGS}
    told = {name: value for name, value in told.items() if value not in (None, "")}
    return yaml.safe_dump(told, sort_keys=False).strip() if told else ""


def _where(row: Row) -> str:
    """On what, with what and how long, as far as the row says."""
    parts = [f"{row['seconds']:.0f} seconds"] if "seconds" in row else []
    parts += [row[name] for name in ("device", "machine") if name in row]
    parts += [f"{name} {row[name]}" for name in ("torch", "timm", "transformers") if name in row]
    return f"Took {', '.join(parts)}." if "seconds" in row else ", ".join(parts)


def _timing(row: Row) -> Row:
    low, high = row["ratio_quartiles"]
    ratio = f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"
    return {"batch": row["batch"], "vanilla": f"{1000 * row['b_seconds']:.0f} ms", "ratio": ratio}


def _explanation_table(rows: list[Row]) -> Row:
    """A column for every score that some row has."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_explanation(name, value)))
    cells = [[f"`{row['explainer']}`", *(_cell(row.get(name)) for name in names)] for row in rows]
    return {
        "explanations": cells,
        "explanation_columns": ["maps", *(_words(name) for name in names)],
        "explained": list(dict.fromkeys(_sample(row) for row in rows)),
        "benchmarks": list(dict.fromkeys(_command(row) for row in rows)),
        "of_vanilla": any(row.get("explains") in ("vanilla", "twin") for row in rows),
    }


def _sample(row: Row) -> str:
    """On which images, as far as the row says."""
    count = f"{row['images']} images" if "images" in row else "images"
    where = f" of `{hide_local_path(row['data'])}` ({row.get('split', 'test')})" if row.get("data") else ""
    return f"{count}{where}" + (f", {row['annotated']} of them annotated" if row.get("annotated") else "")


def _command(row: Row) -> str:
    """The call that measured the row, with what differs from the defaults."""
    defaults = {**BENCHMARK, **{field.name: field.default for field in fields(DataConfig)}}
    told = {name: row[name] for name in defaults if name in row and row[name] != defaults[name]}
    words = ["softcam-hub", "benchmark", "--model", PLACEHOLDER_REPO]
    vanilla = row.get("vanilla") or row.get("twin")  # rows of older benchmarks call it twin
    words += ["--vanilla", hide_local_path(vanilla)] if vanilla else []
    for name, value in told.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(hide_local_path(value))]
    return shlex.join([*words, "--output", "results"])


def _is_explanation(name: str, value: Any) -> bool:
    other = ("accuracy", "confidence", "hold_out")  # of the prediction, and a setting that is a number with a point
    return _is_score(value) and "seconds" not in name and name not in other


def _cell(value: Any) -> str:
    return _shown("", value) if _is_score(value) else "-"


def _results(data: str, split: str, scores: Row, explanations: list[Row]) -> list[EvalResult]:
    """The model-index: how good the predictions are, and how good the model's own maps."""
    where = _on(data, split)
    found = [
        EvalResult(**where, metric_type=name, metric_value=v, metric_name=_words(name)) for name, v in scores.items()
    ]
    for row in explanations:
        if row["explainer"] in native_kinds():
            measured_on = _on(str(hide_local_path(row.get("data") or data)), row.get("split") or split)
            titles = {name: f"{_words(name)} of {row['explainer']} maps" for name in row}
            own = {name: value for name, value in row.items() if _is_explanation(name, value)}
            found += [
                EvalResult(**measured_on, metric_type=name, metric_value=value, metric_name=titles[name])
                for name, value in own.items()
            ]
    return found


def _on(data: str, split: str) -> Row:
    """The task and the data of an entry of the model-index."""
    where = {"task_type": "image-classification", "dataset_type": data, "dataset_name": data, "dataset_split": split}
    return {name: value for name, value in where.items() if value}
