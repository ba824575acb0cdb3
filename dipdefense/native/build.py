"""Compiling the kernels at run time, once for each machine.

The user's cache keeps the library. A library's name holds a digest of everything that determines its code (source,
compiler, options, processor, torch) and one of its own bytes. Machines that share a home directory thus build their
own, and a damaged file is recognised before it is loaded. Files appear by renaming: processes that build at the same
time repeat the work, but none sees half a file.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from dipdefense import processor

T = TypeVar("T")

SOURCE = Path(__file__).with_name("kernels.cpp")
HEADERS = tuple(sorted(SOURCE.parent.glob("*.h")))

# OpenMP's library is linked by its name alone, libgomp.so.1. That of torch has the same name and is loaded already, so
# the loader takes it; another one would have threads of its own. Multiplications and additions may be contracted, but
# sums keep their order.
_OPTIONS = (
    "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno",
    "-fno-trapping-math",
)  # fmt: skip
_COMPILERS = ("g++", "c++", "clang++")
# Compiling takes eight seconds of an idle core, and minutes of one that is shared with a dozen other processes.
_PATIENCE_S = 600


class UnavailableError(Exception):
    """There are no compiled kernels; the message says why."""


def built(load: Callable[[Path], T]) -> T:
    """Load the compiled library: the one in the cache, or a new one where that fails.

    Args:
        load: from a path to the result; raises OSError or AttributeError for any other file.

    Raises:
        UnavailableError: there is no compiler or no temporary folder, the compiler fails, or its library cannot be
            loaded.
    """
    compiler = _compiler()
    key = _key(compiler)
    for path in _cached(key):
        try:
            return load(path)
        except (OSError, AttributeError):
            continue
    try:
        scratch = tempfile.TemporaryDirectory()
    except OSError as error:
        raise UnavailableError(f"there is no temporary folder to compile in ({error})") from error
    with scratch as folder:
        made = _compiled(compiler, Path(folder) / "kernels.so")
        try:
            return load(_kept(made, key))
        except (OSError, AttributeError) as error:
            raise UnavailableError(f"what {shlex.join(compiler)} made cannot be loaded ({error})") from error


def cache_folder() -> Path:
    """The folder of compiled libraries: ``dipdefense`` in ``XDG_CACHE_HOME``.

    ``XDG_CACHE_HOME`` is ``~/.cache`` by default.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path("~/.cache").expanduser()) / "dipdefense"


def _compiler() -> list[str]:
    """The compiler's command: that of ``CXX`` ("ccache g++"), or the first found."""
    given = os.environ.get("CXX")
    try:
        commands = [[given], shlex.split(given)] if given else [[name] for name in _COMPILERS]
    except ValueError as error:
        raise UnavailableError(f"CXX is no command: {given} ({error})") from error
    for name, *arguments in filter(None, commands):
        if found := shutil.which(name):
            # Not what a link leads to: ccache's links tell it by their names which compiler to run.
            return [str(Path(found).absolute()), *arguments]
    raise UnavailableError(f"there is no C++ compiler ({given or ', '.join(_COMPILERS)})")


def _key(compiler: Sequence[str]) -> str:
    """A digest of everything that determines the library.

    The files of the compiler's command stand for their versions.
    """
    files = [Path(found).stat() for word in compiler if (found := shutil.which(word))]
    parts = (
        *(source.read_bytes() for source in (SOURCE, *HEADERS)), *compiler,
        *((file.st_size, file.st_mtime_ns) for file in files), _OPTIONS, torch.__version__, platform.machine(),
        platform.processor(), sorted(processor.features()), sorted(processor.models()),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _cached(key: str) -> Iterator[Path]:
    """The undamaged libraries of this key."""
    try:
        for path in sorted(cache_folder().glob(f"kernels-{key}-*.so")):
            if path.stem.endswith(f"-{_digest(path)}"):
                yield path
    except (OSError, RuntimeError):  # no home, or not ours to read
        return


def _compiled(compiler: Sequence[str], to: Path) -> Path:
    told = shlex.join(compiler)
    try:
        done = subprocess.run(
            [*compiler, *_OPTIONS, str(SOURCE), "-o", str(to)], capture_output=True, text=True, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{told} does not run ({error})") from error
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise UnavailableError(f"{told} fails: {said}")
    return to


def _kept(made: Path, key: str) -> Path:
    """Copy the library into the cache and return its path there.

    Where that fails, return ``made``.
    """
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".partial")
        os.close(handle)
        try:
            shutil.copyfile(made, temporary)
            kept = folder / f"kernels-{key}-{_digest(made)}.so"
            Path(temporary).replace(kept)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return made
    return kept


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
