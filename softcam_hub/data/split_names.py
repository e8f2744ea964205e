"""Names that people give to splits: `Train`, `val` and `test_set` are the splits train, validation and test.

A name that a configuration uses for a split stays as it is.
"""

from collections.abc import Iterable

from .config import DataConfig

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "validate", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}


def usual_split(name: str) -> str | None:
    """Return the split that a name usually stands for, or None if it is no usual name of a split."""
    word = name.strip().lower().replace("-", "_").replace(" ", "_").removesuffix("_set")
    return _SPLIT_OF_WORD.get(word)


def splits_of_names(names: Iterable[str], config: DataConfig) -> dict[str, str]:
    """Return name -> split for names of folders or of values; a name that stands for no split keeps its own.

    Args:
        names: Names as they were found.
        config: Configuration with the names of its splits.
    """
    own = (config.train_split, config.validation_split, config.test_split)
    return {name: name if name in own else usual_split(name) or name for name in names}
