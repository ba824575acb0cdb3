"""The outcomes of a run's images, printed at its end."""

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
    """The outcomes of a run's images.

    Attributes:
        total: number of images found.
        done: number of images whose outputs were written.
        kept: number of images whose outputs were finished before.
        failed: by name, the reason why an image has no output.
        notes: by name, the parts of a file that its output lacks.
        code: the exit code of a run that ended early.
        ended: the reason of the early end.
        begun: whether the work had begun; an early end before that has nothing to resume.
        begin: the time at which the run began.
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
        """Record that an image has no output, and print the reason."""
        self.failed[name] = " ".join(reason.split())
        say(f"FAILED {name}: {self.failed[name]}")

    def note(self, name: str, *notes: str) -> None:
        """Record what an image's output lacks, and print it."""
        for note in notes:
            self.notes.setdefault(name, []).append(note)
            say(f"note: {name}: {note}")

    @property
    def exit_code(self) -> int:
        """The run's exit code, as ``ending`` lists them."""
        return self.code if self.code is not None else SOME_FAILED if self.failed else 0

    def show(self, *, as_json: bool, **circumstances: Any) -> None:
        """Print the summary: a sentence or two, or a JSON document."""
        seconds = round(time.monotonic() - self.begin, 2)
        if as_json:
            document = {
                "images": self.total, "done": self.done, "kept": self.kept, "failed": self.failed, "notes": self.notes,
                "seconds": seconds, "ended": self.ended or None, **circumstances,
            }  # fmt: skip
            click.echo(json.dumps(document, indent=2))
            return
        before = f", {self.kept} of them before" if self.kept else ""
        failed = f" {len(self.failed)} failed, each named above." if self.failed else ""
        click.echo(f"{self.done + self.kept} of {self.total} images are done{before}, in {seconds:.0f} s.{failed}")
        if self.ended:
            click.echo(self.ended, err=True)
