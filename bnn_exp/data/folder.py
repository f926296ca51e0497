"""Finds the dataset in a folder: which files are which rows, of which split and class.

Each form of a dataset has a reader. A reader looks at the names of the files, and at the first bytes of a few, and says
whether it can make rows of them. Exactly one form may be there; else the user is told what was found.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from bnn_exp.data import archive, idx, images, listed, npy, pixel_csv, tables
from bnn_exp.data.rows import Found, Rows, Source, named, shown, split_of
from bnn_exp.errors import UserError

IGNORED = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found"}  # beside all names that begin with a dot
FORMS = (
    "class folders (train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png), pictures with a metadata.csv, IDX, .npz or .npy, "
    "pixel CSV, or parquet files"
)


def find(path: Path, label: str | None = None, part: str = "") -> Source:
    """Finds the dataset in a folder, an archive, or a single file.

    Args:
        label: the column of the classes, where a table has several.
        part: the folder to be read, where the dataset has several configurations by the names of its folders.

    Raises:
        UserError: there is none, or there are several.
    """
    where, path = f"dataset.path={shown(path)}", path.expanduser().absolute()
    if not path.exists():
        raise UserError(f"{where}: no such folder\nallowed: a folder or file that holds {FORMS}")
    if path.is_file() and archive.is_archive(path):
        return archive.source(path, where, lambda folder: find(folder, label, part))
    if path.is_file():
        root, files = path.parent, [path]
    else:
        root = path / part if part and (path / part).is_dir() else path
        files = list(walk(root, where))
        root = _without_wrapper(root, files)
    forms = [found for form in READERS if (found := form(root, files, label, where))]
    archives = [file for file in files if archive.is_archive(file)]
    if not forms and len(archives) == 1:
        return archive.source(archives[0], where, lambda folder: find(folder, label, part))
    if len(forms) != 1:
        raise UserError(f"{where}: {_what_is_there(root, files, forms)}\nallowed: a folder that holds one dataset: {FORMS}")
    (found,) = forms
    source = Source(where, root, sorted(found.files, key=str), found.load)
    left = sorted(set(files) - set(found.files), key=str)
    pictures = [file for file in left if images.is_picture(file)]
    for kind, those, lines in (
        ("picture", pictures, source.warnings),
        ("file", [file for file in left if file not in set(pictures)], source.notes),
    ):
        if those:
            n, first = len(those), shown(those[0].relative_to(root))
            lines.append(f"{n} {kind}s of the folder are not read: {first} …" if n > 1 else f"1 {kind} is not read: {first}")
    return source


def walk(folder: Path, where: str) -> Iterator[Path]:
    """Yields the files in a folder and below it, through symbolic links, without hidden ones.

    Raises:
        UserError: a folder can't be listed.
    """

    def within(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in above:
            return  # a link that leads back up
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in IGNORED:
                continue
            if entry.is_dir():
                yield from within(folder / entry.name, (*above, (status.st_dev, status.st_ino)))
            elif entry.is_file() or entry.is_symlink():  # a link that leads nowhere is a row that is missing
                yield folder / entry.name

    try:
        yield from within(folder, ())
    except OSError as error:
        raise UserError(
            f"{where}: {shown(error.filename or folder)} can't be read ({error.strerror})\nallowed: a folder that you may read"
        ) from error


def _without_wrapper(root: Path, files: list[Path]) -> Path:
    """Returns the folder in `root` that holds the dataset, where each folder down to it holds that folder and nothing else."""
    there = set(files)
    while files:
        tops = {file.relative_to(root).parts[0] for file in files}
        (top, *others) = tops
        if others or split_of(top) or root / top in there:
            return root
        if any(file.parent == root / top and images.is_picture(file) for file in files):
            return root  # a class folder
        root = root / top
    return root


def _pictures(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Finds pictures with a table called metadata, else in class folders, else with any table that names them."""
    about = [file for file in files if file.stem.lower() == "metadata"]
    others = [file for file in files if file not in about]
    return (
        (about and listed.find(root, files, label, where))
        or class_folders(root, files)
        or listed.find(root, others, label, where)
        or None
    )


def class_folders(root: Path, files: list[Path]) -> Found | None:
    """Finds SPLIT/CLASS/…/picture, CLASS/SPLIT/…/picture, or CLASS/…/picture.

    Where a train folder has class folders, the top folder alone decides the split, whatever the names of the classes.
    """
    parts = {file: file.relative_to(root).parts for file in files if images.is_picture(file)}
    layout = _layout(parts.values())
    placed = {file: place for file, part in parts.items() if (place := _place(part, layout))}
    names = sorted({name for _, name in placed.values()})
    if len(names) < 2 or (layout == "bare" and all(map(split_of, names))):  # train/*.png and test/*.png have no classes
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

    return Found("class folders", list(placed), load)


def _layout(parts: Collection[tuple[str, ...]]) -> str:
    """Returns how class folders lie: split first, class first, or bare."""
    deep = [part for part in parts if len(part) > 2]
    if "train" in {split_of(part[0]) for part in deep}:
        return "split first"
    second = {split_of(part[1]) for part in deep}
    if len(deep) == len(parts) and "train" in second and None not in second:
        return "class first"
    return "bare"


def _place(part: tuple[str, ...], layout: str) -> tuple[str, str] | None:
    """Returns the split and the class of a picture, whose path has these parts; None where it has none."""
    if layout == "bare":
        return ("train", shown(part[0])) if len(part) > 1 else None
    split, name = (part[0], part[1]) if layout == "split first" else (part[1], part[0])
    return (split_of(split), shown(name)) if len(part) > 2 and split_of(split) else None


def _what_is_there(root: Path, files: list[Path], forms: list[Found]) -> str:
    """Returns what a folder holds, in words."""
    if forms:
        return f"holds {len(forms)} datasets: " + ", ".join(f"{form.kind} ({len(form.files)} files)" for form in forms)
    if not files:
        return "holds no dataset: the folder is empty"
    pictures = [file for file in files if images.is_picture(file)]
    if pictures:
        first = shown(pictures[0].relative_to(root))
        return f"holds no dataset: {len(pictures)} pictures ({first}, …), but not two class folders, nor a metadata.csv"
    kinds = Counter(file.suffix.lower() or "without suffix" for file in files).most_common(4)
    return "holds no dataset: " + ", ".join(f"{count} {shown(kind)}" for kind, count in kinds) + " files"


READERS = (tables.find, idx.find, npy.find, pixel_csv.find, _pictures)
