"""Image files and other small files: read within limits, written all or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class UnreadableImage(ValueError):  # noqa: N818 - it says what is wrong as it is
    """An image file that cannot be read; its message names the file and the reason.

    Attributes:
        path: the file, or the archive and the entry in it.
        reason: why it cannot be read.
        id: the image's id in its data set, or None for a file by itself.
    """

    # The reason has a default because a DataLoader's worker raises its error again from the message alone.
    def __init__(self, path: str, reason: str = "", *, id: str | None = None) -> None:
        super().__init__(f"{path} cannot be read as an image: {reason}" if reason else path)
        self.path = path
        self.reason = reason
        self.id = id

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason), {"id": self.id}


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` once the block has ended without an error.

    Until then the file at ``path`` is as it was, and an error (an interrupt, too) leaves it so. A replaced file's
    permissions stay, and so does a link: the file that it leads to is replaced.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: the file cannot be written, or ``path`` is a folder or a device; the error names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic(Path(folder, "a.bin")) as file:
        ...         _ = file.write(b"all of it")
        ...     Path(folder, "a.bin").read_bytes()
        b'all of it'
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"{path} is no regular file, so that nothing can take its place; give another name")
    # In the same folder, since only within one file system is a file renamed in one go. The name is short because the
    # target's may be as long as the file system allows.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path | str, data: bytes | str) -> None:
    """Write a whole file, text as UTF-8, so that a reader finds the old one or the new one and never a part.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: the file cannot be written, or ``path`` is a folder or a device; the error names it.
    """
    content = data.encode() if isinstance(data, str) else data
    with atomic(path) as file:
        file.write(content)
