"""Finds the dataset in a folder, an archive or a file: decides the format, and the rows that each file holds.

Each format has a reader in `bnn_exp.data.formats`. A reader looks at file names and at the first bytes of a few files, and
says if it can read the files. Exactly one format must fit; otherwise an error says what was found.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bnn_exp.config.paths import at_home
from bnn_exp.data import columns
from bnn_exp.data.formats import archive, class_folders, idx, image_table, npy, parquet, pixel_csv
from bnn_exp.data.image_suffixes import UNREAD, is_image
from bnn_exp.data.messages import shown
from bnn_exp.data.split_names import split_of
from bnn_exp.data.undecoded import Found, Source
from bnn_exp.errors import UserError

IGNORED = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found"}  # names that begin with a dot are ignored too
FORMS = (
    "class folders (train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png), images with a metadata.csv, IDX, .npz or .npy, "
    "pixel CSV, or parquet files"
)


def find(path: Path, label: str | None = None, part: str = "") -> Source:
    """Returns the dataset in `path`, a folder, an archive or a single file.

    Args:
        label: the column of the classes, if a table has several candidates.
        part: the subfolder to read, if each configuration of the dataset has a subfolder.

    Raises:
        UserError: `path` holds no dataset, or several datasets.
    """
    where, path = f"dataset.path={shown(path)}", Path(at_home(str(path))).absolute()
    if not path.exists():
        raise UserError(f"{where}: no such folder\nallowed: a folder, archive or file that holds {FORMS}")
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
        raise UserError(f"{where}: {_what_is_there(root, files, forms)}\nallowed: a folder or archive of one dataset: {FORMS}")
    (found,) = forms
    if label is not None and not found.columns:
        raise UserError(f"dataset.label={label}: {found.kind} have no columns\nallowed: a dataset with a table")
    source = Source(where, root, sorted(found.files, key=str), found.load, found.plan)
    left = sorted(set(files) - set(found.files), key=str)
    pictures = [file for file in left if is_image(file) or file.suffix.lower() in UNREAD]
    for kind, those, lines in (
        ("image", pictures, source.warnings),
        ("file", [file for file in left if file not in set(pictures)], source.notes),
    ):
        if those:
            n, first = len(those), shown(those[0].relative_to(root))
            lines.append(f"{n} {kind}s of the folder are not read: {first} …" if n > 1 else f"1 {kind} is not read: {first}")
    return source


def walk(folder: Path, where: str) -> Iterator[Path]:
    """Yields the files in a folder and below it, without hidden files. Follows symbolic links.

    Args:
        where: the name of the dataset in error messages.

    Raises:
        UserError: a folder can't be listed.
    """

    def within(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in above:
            return  # the link leads back to a parent folder
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in IGNORED:
                continue
            if entry.is_dir():
                yield from within(folder / entry.name, (*above, (status.st_dev, status.st_ino)))
            elif entry.is_file() or entry.is_symlink():  # a broken link is kept: the decoder names it as a missing image
                yield folder / entry.name

    try:
        yield from within(folder, ())
    except OSError as error:
        raise UserError(
            f"{where}: {shown(error.filename or folder)} can't be read ({error.strerror})\nallowed: a folder that you may read"
        ) from error


def _without_wrapper(root: Path, files: list[Path]) -> Path:
    """Returns the folder that holds the dataset. Descends from `root` as long as a folder contains nothing but one folder."""
    there = set(files)
    while files:
        tops = {file.relative_to(root).parts[0] for file in files}
        (top, *others) = tops
        if others or split_of(top) or root / top in there:
            return root
        if any(file.parent == root / top and is_image(file) for file in files):
            return root  # the folder holds images, so it is a class folder and no wrapper
        root = root / top
    return root


def _pictures(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Finds the image files among `files`, and their classes: from a table called metadata, else from class folders, else from
    any table that names files. None if nothing tells the classes."""
    pictures = [file for file in files if is_image(file)]
    about = [file for file in files if file.stem.lower() == "metadata" and image_table.is_table(file)]
    tables_ = [file for file in files if image_table.is_table(file) and file not in about]
    folders = class_folders.find(root, pictures, where)
    if about and (found := image_table.find(root, about + pictures, label, where, sure=folders is None)):
        return found
    if folders is None and about and pictures:
        raise UserError(
            f"{where}: {shown(about[0].relative_to(root))} names no image that exists\n"
            f"allowed: UTF-8 text with a column of files ({', '.join(columns.FILES[:4])}, …) and one of classes"
        )
    return folders or image_table.find(root, tables_ + pictures, label, where) or None


def _what_is_there(root: Path, files: list[Path], forms: list[Found]) -> str:
    """Returns a text for error messages that says which datasets (`forms`) or which kinds of files a folder holds."""
    if forms:
        return f"holds {len(forms)} datasets: " + ", ".join(f"{form.kind} ({len(form.files)} files)" for form in forms)
    if not files:
        return "holds no dataset: the folder is empty"
    pictures = [file for file in files if is_image(file)]
    if pictures:
        first = shown(pictures[0].relative_to(root))
        return f"holds no dataset: {len(pictures)} images ({first}, …), but not two class folders and no metadata.csv"
    kinds = Counter(file.suffix.lower() or "without suffix" for file in files).most_common(4)
    return "holds no dataset: " + ", ".join(f"{count} {shown(kind)}" for kind, count in kinds) + " files"


READERS = (parquet.find, idx.find, npy.find, pixel_csv.find, _pictures)
