"""The end of a command: exit codes, signals, and one sentence on stderr.

A command that a signal or an error ends prints that sentence. This module is imported before all others and needs the
standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, Never

BEGIN = time.monotonic()
"""The time at which the command began."""

SOME_FAILED, USAGE, STOPPED = 1, 2, 3

EXIT_CODES = """\b
Exit codes:
  0    done
  1    done, except for the images that are named on stderr
  2    the arguments cannot be used; nothing was done
  3    stopped early, for example by a full disk; finished outputs stay
  130  interrupted (Ctrl-C), 143 terminated; finished outputs stay"""

_received: list[int] = []
_working = False


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived while a command was working.

    Attributes:
        code: the exit code.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number

    def __str__(self) -> str:
        """The signal's effect in one word, as messages have it."""
        return "Interrupted" if self.code == 128 + signal.SIGINT else "Terminated"


class Stopped(Exception):  # noqa: N818 - its message says what is wrong
    """The run cannot continue, for a reason that is not a single image's."""


def handle_signals() -> None:
    """Let SIGINT and SIGTERM end the process with one sentence, whatever it is doing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell makes the background programs of a script ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        # Python drops an exception that is raised in a destructor or a callback; ``check`` raises it again.
        if not isinstance(unraisable.exc_value, Interrupted):
            hook(unraisable)

    sys.unraisablehook = quiet
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if _working and not _received:
        _received.append(number)
        raise Interrupted(number)
    # Before the work there is nothing to clean up, and an exception in an import may be swallowed or printed. A second
    # signal ends the process without cleaning up; the next run does that.
    os.write(2, f"dipdefense: {Interrupted(number)}.\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Within the block the first signal raises ``Interrupted``.

    A further signal, or one outside the block, ends the process at once.
    """
    global _working
    _working = True
    try:
        yield
    finally:
        _working = False


def check() -> None:
    """Raise ``Interrupted`` if a signal arrived and its exception was lost."""
    if _received:
        raise Interrupted(_received[0])


def end(code: int, sentence: str) -> Never:
    """Print a sentence on stderr and exit.

    Raises:
        SystemExit: always.
    """
    print(f"dipdefense: {sentence}", file=sys.stderr)
    raise SystemExit(code)
