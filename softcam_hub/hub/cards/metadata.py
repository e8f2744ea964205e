"""What the Hub reads about a model: the YAML block at the top of its card, with the model-index, and `.eval_results`.

`library_name` is `transformers`: the Hub then shows visitors a snippet with `trust_remote_code`, which works
with the code in the repository. The snippet for timm would fail without `import softcam_hub`; a tag names timm.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model

from ...models.heads import native_kinds
from .local_paths import hide_local_path, is_hub_id
from .records import METRICS, Row, read_optional_mapping
from .tables import in_words, is_explanation_score, scores_of


def card_metadata(
    family: str,
    license: str,
    base_model: str | None,
    datasets: list[str],
    name: str = "",
    results: list[EvalResult] | None = None,
) -> ModelCardData:
    """Collect the metadata of a card.

    Args:
        family: Family of the model, which becomes a tag.
        license: Licence of the weights, as the Hub spells it.
        base_model: Repository of the weights that training started from.
        datasets: Repositories of the training data.
        name: Name of the model in the model-index.
        results: Scores of the model-index.
    """
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["timm", "softcam-hub", family, "explainability", "class-activation-maps", "image-classification"],
        base_model=base_model,
        datasets=datasets or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def find_base_model(settings: Row, backbone: str) -> PretrainedCfg | None:
    """Return timm's description of the weights that training started from, or None if they were random.

    Args:
        settings: Settings of the training run.
        backbone: Name of the backbone in timm.
    """
    tag = str(settings.get("model", "")).partition(".")[2]
    if not settings.get("pretrained") or not is_model(backbone):
        return None
    return get_pretrained_cfg(f"{backbone}.{tag}" if tag else backbone)


def model_index(data: str, split: str, scores: Row, explanations: list[Row]) -> list[EvalResult]:
    """List the scores of the predictions, and those of the model's own maps with the map kind in their names.

    No two scores on the same data have the same name, because readers of a model-index tell them apart by it.

    Args:
        data: Name of the data.
        split: Split on which the scores were measured.
        scores: Scores of the predictions, by name.
        explanations: Rows of a benchmark. Those of post-hoc maps are left out, as they describe other models.
    """
    results = [_result(name, value, data, split) for name, value in scores.items()]
    for row in explanations:
        if row["explainer"] in native_kinds():
            measured_on = str(hide_local_path(row.get("data") or data)), row.get("split") or split
            for name, value in row.items():
                if is_explanation_score(name, value):
                    results.append(_result(f"{name}_of_{row['explainer']}_maps", value, *measured_on))
    # Of scores that were measured twice on the same data, the last one counts.
    return list({(result.unique_identifier, result.metric_type): result for result in results}.values())


def _result(name: str, value: float, data: str, split: str) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=data,
        dataset_name=data,
        dataset_split=split or None,
        metric_type=name,
        metric_name=in_words(name),
        metric_value=value,
    )


def published_results(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the file in which the Hub looks for results on a data set of the Hub.

    The Hub shows these results on the page of the model, and on the leaderboard of a data set that has one. The
    file holds one result per data set, the accuracy.

    Args:
        folder: Model folder with, perhaps, metrics.
    """
    metrics = read_optional_mapping(folder / METRICS)
    data, (split, scores) = str(metrics.get("data", "")), scores_of(metrics)
    if is_hub_id(data) and "accuracy" in scores:
        result = EvalResultEntry(data, "default", scores["accuracy"], notes=f"accuracy on the {split} split")
        text = yaml.safe_dump(eval_result_entries_to_yaml([result]), sort_keys=False)
        yield f".eval_results/{data.partition('/')[2]}.yaml", text.encode()
