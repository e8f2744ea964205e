"""The YAML block at the top of a card: tags, licence, base model, data, and the scores of the model-index.

`library_name` is `transformers`: the Hub then shows visitors a snippet with `trust_remote_code`, which works
with the code in the repository. The snippet for timm would fail without `import softcam_hub`; a tag names timm.
"""

from huggingface_hub import EvalResult, ModelCardData
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model

from ...models.heads import native_kinds
from .local_paths import hide_local_path
from .records import Row
from .tables import in_words, is_explanation_score


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
        **({"base_model": base_model} if base_model else {}),
        **({"datasets": datasets} if datasets else {}),
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
    """List the scores of the predictions, and those of the model's own maps.

    Args:
        data: Name of the data.
        split: Split on which the scores were measured.
        scores: Scores of the predictions, by name.
        explanations: Rows of a benchmark. Those of post-hoc maps are left out, as they describe other models.
    """
    results = [_result(name, in_words(name), value, data, split) for name, value in scores.items()]
    for row in explanations:
        if row["explainer"] in native_kinds():
            measured_on = str(hide_local_path(row.get("data") or data)), row.get("split") or split
            for name, value in row.items():
                if is_explanation_score(name, value):
                    title = f"{in_words(name)} of {row['explainer']} maps"
                    results.append(_result(name, title, value, *measured_on))
    return results


def _result(name: str, title: str, value: float, data: str, split: str) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=data,
        dataset_name=data,
        metric_type=name,
        metric_name=title,
        metric_value=value,
        **({"dataset_split": split} if split else {}),
    )
