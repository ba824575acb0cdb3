"""The progress of a run, on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType

from tqdm import tqdm

_EVERY = 60
"""Seconds between two lines where stderr is not a terminal."""


class Progress:
    """A bar with images per second and the time left.

    Where stderr is not a terminal, a line is printed every minute instead.

    Args:
        total: number of images.
    """

    def __init__(self, total: int) -> None:
        self._bar = tqdm(
            total=total,
            disable=total == 0 or not sys.stderr.isatty(),
            bar_format="{percentage:3.0f} %|{bar}| {n:.1f} of {total} images{postfix}, {remaining} left",
            file=sys.stderr,
            leave=False,
        )
        self._begin = self._said = time.monotonic()
        self._total, self._done = total, 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, images: float) -> None:
        """Count more images, or a fraction of one, as done."""
        self._done += images
        now = time.monotonic()
        rate = self._done / max(now - self._begin, 1e-9)
        self._bar.set_postfix_str(f"{rate:.2g} images/s", refresh=False)
        self._bar.update(images)
        if self._bar.disable and now - self._said >= _EVERY and rate > 0:
            self._said = now
            left = timedelta(seconds=round((self._total - self._done) / rate))
            say(f"{self._done:.1f} of {self._total} images, {rate:.2g} images/s, {left} left")

    @contextlib.contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """Count exactly this many images for the block, whatever ``advance`` counts."""
        target = self._done + images
        yield
        self.advance(target - self._done)


def say(text: str) -> None:
    """Print a line on stderr, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)
