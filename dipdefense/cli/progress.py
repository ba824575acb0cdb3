"""How far a run is, on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType

from tqdm import tqdm


class Progress:
    """A bar with images a second and the time left; where stderr is no terminal, a line now and then.

    Args:
        total: images to do.
    """

    def __init__(self, total: int) -> None:
        self._bar = tqdm(
            total=total,
            mininterval=0.2 if sys.stderr.isatty() else 30,
            disable=total == 0,
            bar_format="{percentage:3.0f} %|{bar}| {n:.1f} of {total} images{postfix}, {remaining} left",
            file=sys.stderr,
            leave=False,
        )
        self._begin = time.monotonic()
        self._done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, images: float) -> None:
        """So many more images are done, or a part of one."""
        rate = (self._bar.n + images) / max(time.monotonic() - self._begin, 1e-9)
        self._bar.set_postfix_str(f"{rate:.2g} images/s", refresh=False)
        self._bar.update(images)

    @contextlib.contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """The block does so many images; after it they are done, whatever ``advance`` was told meanwhile."""
        yield
        self._done += images
        self.advance(self._done - self._bar.n)


def say(text: str) -> None:
    """Print a line on stderr, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)
