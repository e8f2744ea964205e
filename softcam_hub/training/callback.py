"""Explanation scores in `Trainer`'s own log, at each evaluation."""

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..explanation_scores.faithfulness import completeness_error, gini_sparseness
from ..models.evaluation_mode import evaluation_mode


class ExplanationCallback(TrainerCallback):
    """Score the maps of the predicted classes on the first evaluation images, and log the means.

        trainer.add_callback(ExplanationCallback(trainer))

    Logs `eval_completeness_error` (0 but for rounding), `eval_sparseness` (Gini) and `eval_confidence`; they can serve
    as `metric_for_best_model` too.

    Args:
        trainer: whose model and log to use.
        images: how many images each process scores.
    """

    def __init__(self, trainer: Trainer, images: int = 64) -> None:
        self.trainer, self.images = trainer, images

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        model = self.trainer.accelerator.unwrap_model(kwargs["model"])
        gather = self.trainer.accelerator.gather_for_metrics  # without the images that fill up the last batch
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed, and training must not depend on being scored
            loader = kwargs["eval_dataloader"]
            scores = [gather(score(model, batch["pixel_values"])) for batch in self._batches(loader)]
        prefix = next(key.removesuffix("runtime") for key in metrics if key.endswith("_runtime"))
        means = {f"{prefix}{name}": float(torch.cat([part[name] for part in scores]).mean()) for name in scores[0]}
        metrics.update(means)
        self.trainer.log(means)

    def _batches(self, loader: Any) -> Any:
        seen = 0
        for batch in loader:
            yield batch
            seen += len(batch["pixel_values"])
            if seen >= self.images:
                if hasattr(loader, "end"):  # accelerate counts the loaders that are under way
                    loader.end()
                return


def score(model: Any, images: Tensor) -> dict[str, Tensor]:
    """Scores (B,) of the predicted class's map; where a map composes probabilities they are compared, else logits."""
    images = images.to(model.device)
    explanation = model.explain(images)
    maps, probabilities = explanation.maps[:, 0].float(), explanation.probabilities[:, 0]
    if explanation.kind == "cape":
        composed, predicted = maps.sum(dim=(1, 2)), probabilities
    else:
        with evaluation_mode(model), torch.no_grad():
            logits = model.head(model.forward_features(images))
        composed, predicted = maps.mean(dim=(1, 2)), logits.float().gather(1, explanation.classes)[:, 0]
    return {
        "completeness_error": completeness_error(composed, predicted),
        "sparseness": gini_sparseness(maps),
        "confidence": probabilities,
    }
