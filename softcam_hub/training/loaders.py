"""Load batches for training and evaluation, in every process its share."""

from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .config import Config


def prepare_loader(samples: Dataset, config: Config, accelerator: Accelerator, **options: Any) -> Any:
    """Return a loader that gives each process its share of the batches.

    Args:
        samples: Samples to load.
        config: Settings of the run.
        accelerator: Accelerator of this process.
        options: Further arguments of `DataLoader`.
    """
    returns_batches = hasattr(samples, "__getitems__")  # cached features need no workers and no collating
    workers = 0 if returns_batches else config.run.workers
    loader = DataLoader(
        samples,
        config.optimization.batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=_return_batch if returns_batches else None,
        **options,
    )
    return accelerator.prepare_data_loader(loader)


def _return_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
