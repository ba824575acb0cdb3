"""The folder that a command writes into, one run at a time.

Every file records how it was made.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dipdefense.cli import ending
from dipdefense.cli.ending import Interrupted, Stopped
from dipdefense.cli.summary import Summary
from dipdefense.files import printable, remove_unfinished

_KEY = "dipdefense"
_LOCK = ".dipdefense.lock"

# Errors of the file system, not of one file: every further file would fail too.
_ENDS_THE_RUN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

State = Literal["missing", "done", "stale", "other settings", "foreign"]
"""An output's state: missing; done; made from another version of its original; made with other settings; not made by
this command."""


@dataclass(frozen=True)
class Record:
    """The origin of an output, in its PNG's metadata under the key "dipdefense".

    Attributes:
        settings: everything besides the original that decides the pixels, in JSON's types.
        source: the digest of the original.
    """

    settings: dict[str, Any]
    source: str

    def metadata(self, **circumstances: Any) -> dict[str, str]:
        """The PNG's entry. The circumstances inform readers and are not compared."""
        return {_KEY: json.dumps({"settings": self.settings, "source": self.source, **circumstances})}


def state_of(path: Path, record: Record) -> tuple[State, str]:
    """An output's state compared with this record, and the difference."""
    if not os.path.lexists(path):
        return "missing", ""
    stored = _stored(path)
    if stored is None:
        return "foreign", "it was not written by this command"
    expected = json.loads(json.dumps(record.settings))
    differing = [
        f"{name} {stored['settings'].get(name)!r} instead of {value!r}"
        for name, value in expected.items()
        if stored["settings"].get(name) != value
    ]
    if differing or stored["settings"].keys() != expected.keys():
        return "other settings", ", ".join(differing) or "it has settings that this version does not know"
    return ("done", "") if stored["source"] == record.source else ("stale", "its original has changed")


def refuse_to_replace(in_the_way: Sequence[str]) -> None:
    """Refuse to replace files; each entry names one, with the reason.

    Raises:
        ValueError: there are such files.
    """
    if in_the_way:
        further = f" (and {len(in_the_way) - 1} more like it)" if len(in_the_way) > 1 else ""
        raise ValueError(f"{in_the_way[0]}{further}. Give another OUT, or --overwrite to replace such files")


def _stored(path: Path) -> dict[str, Any] | None:
    from PIL import Image

    # A file that fails in any way was not written here.
    with contextlib.suppress(Exception), Image.open(path, formats=("PNG",)) as picture:
        stored = json.loads(picture.info[_KEY])
        if isinstance(stored["settings"], dict) and isinstance(stored["source"], str):
            return dict(stored)
    return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and lock it against other runs.

    The lock ends with the process, however that ends.

    Raises:
        Stopped: another run holds it.
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # on Windows two runs may do some work twice, but every file is still whole
        yield
        return
    path = folder / _LOCK
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise Stopped(
                f"another run (process {holder}) is writing into {printable(folder)}; wait for it, or give another OUT"
            ) from None
        # The run that held it may have removed the file between the two calls above.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
        file.close()
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def run(summary: Summary, outputs: Sequence[Path], lock: Path | None) -> Iterator[None]:
    """The work of a command, which a signal or a full disk may end early.

    Args:
        summary: gets the reason of an early end.
        outputs: the files to be written; temporary files that killed runs left beside them are removed.
        lock: the folder to lock against other runs; None for no lock, where temporary files of the last hour may belong
            to another process and stay.

    Raises:
        Stopped: another run holds the folder.
        OSError: the folder cannot be made or written.
    """
    with ending.working(), contextlib.ExitStack() as held:
        try:
            if lock is not None:
                held.enter_context(locked(lock))
            for folder in {path.parent for path in outputs}:
                if folder.is_dir():
                    remove_unfinished(folder, older_than=3600 if lock is None else 0)
            yield
        except Interrupted as stop:
            summary.code, summary.ended = stop.code, f"{stop}. The same command resumes."
        except Stopped as stop:
            if not summary.begun:
                raise
            summary.code, summary.ended = ending.STOPPED, f"Stopped: {stop}."


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make an output's folder, and raise ``Stopped`` if the file system is unusable.

    Raises:
        Stopped: nothing more can be written to the file system.
        OSError: this file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in _ENDS_THE_RUN:
            raise Stopped(
                f"{printable(path)} could not be written: {error.strerror}. Free some space or mend the disk, and give "
                "the same command again"
            ) from error
        raise
