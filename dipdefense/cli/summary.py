"""What became of a run's images, told on stdout at its end."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import click

from dipdefense.cli.ending import SOME_FAILED
from dipdefense.cli.progress import say


@dataclass
class Summary:
    """The images of a run.

    Attributes:
        total: those that were found.
        done: those whose outputs were written.
        kept: those whose outputs were there before.
        failed: why each of the others has none, by name.
        notes: whatever of a file is not in its output, by name.
        code: the exit code of a run that ended early.
        ended: why it did.
        begun: whether there was work that an early end leaves unfinished.
    """

    total: int
    done: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    code: int | None = None
    ended: str = ""
    begun: bool = False
    begin: float = field(default_factory=time.monotonic)

    def fail(self, name: str, reason: str) -> None:
        """An image has no output; it is named at once."""
        self.failed[name] = " ".join(reason.split())
        say(f"FAILED {name}: {self.failed[name]}")

    def note(self, name: str, *notes: str) -> None:
        """Something of an image is not in its output; it is said at once."""
        for note in notes:
            self.notes.setdefault(name, []).append(note)
            say(f"note: {name}: {note}")

    @property
    def exit_code(self) -> int:
        """See ``ending``."""
        return self.code if self.code is not None else SOME_FAILED if self.failed else 0

    def show(self, *, as_json: bool, **circumstances: Any) -> None:
        """Print it: a sentence or two, or a JSON document."""
        seconds = round(time.monotonic() - self.begin, 2)
        if as_json:
            document = {
                "images": self.total, "done": self.done, "kept": self.kept, "failed": self.failed, "notes": self.notes,
                "seconds": seconds, "ended": self.ended or None, **circumstances,
            }  # fmt: skip
            click.echo(json.dumps(document, indent=2))
            return
        before = f", {self.kept} of them before" if self.kept else ""
        failed = f" {len(self.failed)} failed and are named above." if self.failed else ""
        click.echo(f"{self.done + self.kept} of {self.total} images are done{before}, in {seconds:.0f} s.{failed}")
        if self.ended:
            click.echo(self.ended, err=True)
