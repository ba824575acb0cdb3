"""The folder that a command writes into: one run at a time, and each file knows how it was made."""

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

# Of a file system, not of one file: every further file would fail, too.
_ENDS_THE_RUN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

State = Literal["missing", "done", "stale", "other settings", "foreign"]
"""Of an output: not there; there; of another version of its original; of other settings; not of this command."""


@dataclass(frozen=True)
class Record:
    """What an output was made of, kept in its PNG's metadata under the key "dipdefense".

    Attributes:
        settings: whatever decides the pixels besides the original, in types that JSON has.
        source: the original's digest.
    """

    settings: dict[str, Any]
    source: str

    def metadata(self, **circumstances: Any) -> dict[str, str]:
        """The PNG's entry; the circumstances are told to readers and not compared."""
        return {_KEY: json.dumps({"settings": self.settings, "source": self.source, **circumstances})}


def state_of(path: Path, record: Record) -> tuple[State, str]:
    """Whether an output is there as this record has it, and what differs."""
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
        return "other settings", ", ".join(differing) or "it has settings that are unknown here"
    return ("done", "") if stored["source"] == record.source else ("stale", "its original has changed")


def refuse_to_replace(in_the_way: Sequence[str]) -> None:
    """Refuse if there are files that an output would take the place of, each told with its reason.

    Raises:
        ValueError: there are.
    """
    if in_the_way:
        further = f" (and {len(in_the_way) - 1} more like it)" if len(in_the_way) > 1 else ""
        raise ValueError(f"{in_the_way[0]}{further}. Give another OUT, or --overwrite to replace what is there")


def _stored(path: Path) -> dict[str, Any] | None:
    from PIL import Image

    # Whatever is wrong with the file, it is none of ours.
    with contextlib.suppress(Exception), Image.open(path, formats=("PNG",)) as picture:
        stored = json.loads(picture.info[_KEY])
        if isinstance(stored["settings"], dict) and isinstance(stored["source"], str):
            return dict(stored)
    return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it against other runs; the lock ends with the process, however that ends.

    Raises:
        Stopped: another run holds it.
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # on Windows two runs only do some work twice, as every file is written all or not at all
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
    """The work of a command, which may end early: by a signal, or because nothing more can be written.

    Args:
        summary: is told why it ended.
        outputs: whatever it will write. What killed runs left beside them is removed.
        lock: the folder to hold against other runs; None where files of the last hour may be another process's.

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
    """Make the folder of an output that is about to be written.

    Raises:
        Stopped: the file system takes no more files.
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
