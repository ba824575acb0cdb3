"""The group of subcommands, each imported on first use."""

from __future__ import annotations

import importlib

import click

from dipdefense import __version__
from dipdefense.cli.ending import EXIT_CODES

_SUBCOMMANDS = ("purify", "classify", "attack", "evaluate", "doctor")


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _SUBCOMMANDS:
            return None
        found: click.Command = importlib.import_module(f"dipdefense.cli.{cmd_name}").command
        return found


@click.group(cls=_Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="dipdefense %(version)s")
def command() -> None:
    """Deep Image Prior as a preprocessing defence against adversarial images.

    Accuracy under attacks that do not know of the defence is not robustness.
    """
