"""``python -m dipdefense``, the same as the command ``dipdefense``."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line."""
    # First of all: an interrupt during the imports that follow has no traceback either.
    from dipdefense.cli import ending

    ending.handle_signals()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr by default: the name of a file may have characters that a terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    from dipdefense.cli.command import command

    try:
        command.main(prog_name="dipdefense")
    except ending.Interrupted as stop:  # between the end of the work and the end of ``ending.working``
        ending.end(stop.code, f"{stop}.")


if __name__ == "__main__":
    main()
