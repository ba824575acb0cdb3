"""``dipdefense doctor``: versions, devices, a check of this machine, and costs."""

from __future__ import annotations

from typing import Any

import click

from dipdefense.cli import ending
from dipdefense.cli.options import ITERATIONS, Command, as_json, network, usage


@click.command(cls=Command)
@click.option(
    "--size", type=click.IntRange(1, 8192), default=224, show_default=True, help="Height and width in pixels."
)
@click.option("--iters", type=ITERATIONS, default=1000, show_default=True, help="Iterations to predict the cost of.")
@click.option(
    "--measure", "seconds", type=click.FloatRange(0, 3600), default=10, show_default=True, help="Seconds to time for."
)
@network
@as_json
def command(size: int, iters: int, seconds: float, as_json: bool, **options: Any) -> None:
    """Show versions and devices, check this machine, and measure an image's cost.

    The check compares losses on this machine with the reference, a plain loop in float64. The cost is predicted from a
    few iterations. Exit code 1: the check failed.
    """
    import json

    from dipdefense.cli.examination import examine, told
    from dipdefense.cli.network import asked_for

    with ending.working():
        try:
            with usage():
                found = examine(asked_for(**options), size=size, iters=iters, seconds=seconds, asked=options)
        except ending.Interrupted as stop:
            ending.end(stop.code, f"{stop}.")
    click.echo(json.dumps(found, indent=2) if as_json else told(found))
    raise SystemExit(0 if all(proof["passed"] for proof in found["proofs"]) else ending.SOME_FAILED)
