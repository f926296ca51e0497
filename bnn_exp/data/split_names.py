"""Finds the split (train, validation, test) in names of files and folders."""

import re
from collections.abc import Sequence
from pathlib import Path

SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "t10k"),
}
"""The words that mean a split in names of files and folders. Upper case and lower case are alike."""


def split_of(word: str) -> str | None:
    """Returns the split that a word names: train, validation or test; None for other words."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), None)


def split_among(name: str) -> str | None:
    """Returns the split that a name contains among other words, such as seg_train, train_images or train2017; None if
    there is no split, or several."""
    found = {split for word in re.findall(r"t10k|[a-z]+", name.lower()) if (split := split_of(word))}
    return found.pop() if len(found) == 1 else None


def split_in(path: Path) -> str | None:
    """Returns the split in a relative path: from the file name, else from the folders, top folder first; None without any."""
    return next(filter(None, map(split_among, (path.name, *path.parts[:-1]))), None)


def by_split(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Returns the files of each split, by their paths below `root`. If no path names a split, all files are train files."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(files, key=str):
        if split := split_in(file.relative_to(root)):
            splits.setdefault(split, []).append(file)
    return splits or {"train": sorted(files, key=str)}
