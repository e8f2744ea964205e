"""Score explanations: pure functions on tensors, one value per image, and an `evaluate` module over them."""

from pathlib import Path
from typing import Any

HINT = "load_scores() needs the evaluate package: pip install evaluate"


def load_scores(**kwargs: Any) -> Any:
    """Load the explanation scores as a module of Hugging Face's `evaluate`.

        scores = softcam_hub.load_scores()
        scores.compute(confidence=[0.9, 0.6], kept=[0.8, 0.7])  # {"average_drop": 5.56, ...}, in percent

    The inputs are numbers for each image, such as the confidence of a class in the whole image (`confidence`) and where
    only the explained part is left (`kept`). `add_batch` collects them batch by batch, and `print(scores)` describes
    every input and every score. The functions that compute them from tensors are in `softcam_hub.explanation_scores`.

    Args:
        kwargs: Arguments of `evaluate.load`: `num_process`, `process_id`, `experiment_id`, `keep_in_memory`,
            ...
    """
    try:
        import evaluate
    except ImportError as error:
        raise ImportError(f"{HINT} ({error.name} is missing)") from error
    return evaluate.load(str(Path(__file__).parent), **kwargs)
