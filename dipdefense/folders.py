"""The files below a folder, links to other folders included."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from dipdefense.files import printable


def files_below(root: Path) -> list[str]:
    """The sorted paths of all files below a folder, relative to it.

    They have forward slashes on every system.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: a folder cannot be listed, such as one without permission.
        ValueError: a link leads back to a folder that contains it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {printable(root)}" + (", only a file" if root.exists() else ""))
    return sorted(path.relative_to(root).as_posix() for path in _walk(root, ()))


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """All files below a folder; ``above`` are the folders that led here."""
    try:
        status = folder.stat()
        with os.scandir(folder) as listing:
            entries = [(Path(entry), _is_folder(entry)) for entry in listing]
    except OSError as error:
        raise OSError(error.errno, f"a folder of images cannot be listed: {error.strerror}", error.filename) from error
    own = (status.st_dev, status.st_ino)
    if own in above:
        raise ValueError(f"{printable(folder)} leads back to a folder that it lies in; remove this link")
    for path, is_folder in entries:
        if is_folder:
            yield from _walk(path, (*above, own))
        else:
            yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself counts as a file, and fails as one when it is read
            return False
        raise
