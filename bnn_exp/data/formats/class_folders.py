"""Reads folders of images in which each class is a folder: SPLIT/CLASS/…/image, CLASS/SPLIT/image, or CLASS/…/image."""

from collections.abc import Callable
from pathlib import Path

from bnn_exp.data.messages import named, shown
from bnn_exp.data.split_names import split_among, split_of
from bnn_exp.data.undecoded import Found, Rows, Source
from bnn_exp.errors import UserError


def find(root: Path, pictures: list[Path], where: str) -> Found | None:
    """Returns the image files in class folders, with split and class; None if there are fewer than two classes.

    If a train folder contains class folders, the top folder alone decides the split, whatever the class names are.

    Args:
        root: the folder of the dataset.
        pictures: the image files below `root`.
        where: the name of the dataset in error messages.
    """
    placed = _placed(_below_base({file: file.relative_to(root).parts for file in pictures}, where))
    names = sorted({name for _, name in placed.values()})
    if len(names) < 2:
        return None
    rows: dict[str, list[Path]] = {}
    for file in sorted(placed, key=str):
        rows.setdefault(placed[file][0], []).append(file)

    def load(source: Source) -> dict[str, Rows]:
        number = {name: i for i, name in enumerate(names)}
        return {
            split: Rows(
                paths,
                [number[placed[file][1]] for file in paths],
                tuple(names),
                named(paths),
                tuple(shown(file.relative_to(root)) for file in paths),
            )
            for split, paths in rows.items()
        }

    plan = repr([(shown(file.relative_to(root)), *placed[file]) for file in sorted(placed, key=str)])
    return Found("class folders", list(placed), load, plan, columns=False)


Parts = dict[Path, tuple[str, ...]]  # per image: the names of its folders and its file name


def _below_base(parts: Parts, where: str) -> Parts:
    """Returns the path parts below the folder that holds train/CLASS, if most images lie below such a folder.

    Otherwise returns the path parts without the leading folders that hold all images.

    Raises:
        UserError: several folders hold train/CLASS.
    """
    while parts and len({part[0] for part in parts.values()}) == 1 and min(map(len, parts.values())) > 2:
        if split_of(next(iter(parts.values()))[0]):
            break
        parts = {file: part[1:] for file, part in parts.items()}  # one folder holds all images: look below it
    bases: dict[tuple[str, ...], None] = {}
    for part in parts.values():
        if (depth := next((i for i in range(len(part) - 2) if split_of(part[i]) == "train"), None)) is not None:
            bases[part[:depth]] = None
    below = {base: [file for file, part in parts.items() if part[: len(base)] == base and len(part) > 2] for base in bases}
    if () in bases or not bases or 2 * len(set().union(*below.values())) < len(parts):
        return parts
    if len(bases) > 1:
        both = " and ".join("/".join(map(shown, base)) for base in list(bases)[:2])
        raise UserError(f"{where}: several folders hold train/CLASS ({both})\nallowed: the path of one of them")
    ((base, files),) = below.items()
    return {file: parts[file][len(base) :] for file in files}


def _placed(parts: Parts) -> dict[Path, tuple[str, str]]:
    """Returns (split, class) of each image whose path names a class folder."""
    deep = {file: part for file, part in parts.items() if len(part) > 2}
    for split in (split_of, split_among):  # first names such as train and test, then names such as seg_train and seg_test
        tops = {split(part[0]) for part in deep.values()}
        if "train" in tops and (split is split_of or len(tops - {None}) > 1):
            return _split_first(deep, split)
    if tops and None not in tops and "train" not in tops:
        return _split_first(deep, split_among)  # the top folders name splits, none of them train
    if "train" in {split_of(part[1]) for part in deep.values()} and any(
        split_of(part[1]) in ("test", "validation") for part in deep.values()
    ):
        return {file: (split_of(part[1]), shown(part[0])) for file, part in deep.items() if split_of(part[1])}
    names = {split_among(part[0]) for part in parts.values() if len(part) > 1}
    if "train" in names and len(names) > 1 and None not in names:
        return {}  # train/*.png and test/*.png have no classes
    return {file: ("train", shown(part[0])) for file, part in parts.items() if len(part) > 1}


def _split_first(deep: Parts, split: Callable[[str], str | None]) -> dict[Path, tuple[str, str]]:
    """Returns (split, class) of each image whose path is SPLIT/CLASS/…, or SPLIT/SPLIT/CLASS/… with a repeated folder.

    Args:
        split: a function that returns the split that the name of a folder means, or None.
        deep: the images below at least two folders, with the parts of their paths.
    """
    below: dict[str, set[str]] = {}
    for part in deep.values():
        below.setdefault(part[0], set()).add(part[1] if len(part) > 3 else "")
    place = {top: 2 if len(names) == 1 and split(next(iter(names))) == split(top) else 1 for top, names in below.items()}
    return {
        file: (split(part[0]), shown(part[place[part[0]]]))
        for file, part in deep.items()
        if split(part[0]) and len(part) > place[part[0]] + 1
    }
