"""Score explanations: pure functions on tensors, one value per image, and an `evaluate` module over them."""

from pathlib import Path
from typing import Any

HINT = "load_scores() needs the evaluate package: pip install 'softcam-hub[scores]'"


def load_scores(**kwargs: Any) -> Any:
    """Load the `evaluate` module of this folder.

        scores = softcam_hub.load_scores()
        scores.compute(confidence=[0.9, 0.6], kept=[0.8, 0.7])  # {"average_drop": 5.56, ...}, in percent

    Args:
        kwargs: Arguments of `evaluate.load`: `num_process`, `process_id`, `experiment_id`, `keep_in_memory`,
            ...
    """
    try:
        import evaluate
    except ImportError as error:
        raise ImportError(f"{HINT} ({error.name} is missing)") from error
    return evaluate.load(str(Path(__file__).parent), **kwargs)
