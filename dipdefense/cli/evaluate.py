"""``dipdefense evaluate``: the remaining accuracy under adaptive attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from dipdefense.cli import ending
from dipdefense.cli.options import (
    COUNT,
    EXISTING,
    ITERATIONS,
    WRITTEN,
    Command,
    as_json,
    classifier,
    network,
    usage,
)  # fmt: skip


@click.command(cls=Command)
@click.argument("out", metavar="OUT", type=WRITTEN)
@click.option("--data", type=EXISTING, help="Images in folders by WordNet id, as IMAGENET/val.  [default: packaged]")
@click.option("--images", type=COUNT, default=4, show_default=True, help="Number of images, sampled at random.")
@classifier
@click.option("--iters", type=ITERATIONS, default=1000, show_default=True, help="Iterations of the reconstruction.")
@click.option("--level", type=click.Choice(("quick", "standard", "full")), default="quick", show_default=True)
@click.option(
    "--epsilon", type=click.FloatRange(0, 255, min_open=True), multiple=True,
    help="Strength, for Linf in units of 1/255; may be repeated.  [default: 8]",
)  # fmt: skip
@click.option("--norm", type=click.Choice(("Linf", "L2")), default="Linf", show_default=True)
@click.option("--batch-size", type=COUNT, default=16, show_default=True, help="Images attacked at once.")
@network
@as_json
def command(
    out: Path,
    data: Path | None,
    images: int,
    classifier_name: str,
    weights: Path | None,
    iters: int,
    level: str,
    epsilon: tuple[float, ...],
    norm: Literal["Linf", "L2"],
    batch_size: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Attack the defence with full knowledge of it, and write the accuracy into OUT.

    The expected cost is printed before the first attack. "quick" and "standard" are reduced attacks: accuracy under
    them is an upper bound and not robust accuracy. The folder OUT gets the report as Markdown and as JSON, and the
    state that a killed run resumes from.
    """
    from dipdefense import evaluation
    from dipdefense.cli import reading
    from dipdefense.cli.evaluating import sampled, written
    from dipdefense.cli.network import asked_for
    from dipdefense.cli.outputs import run, writing
    from dipdefense.cli.progress import say
    from dipdefense.cli.summary import Summary

    summary = Summary(images)
    with usage():
        chosen = asked_for(**options)
        model = reading.load(classifier_name, weights, chosen.device)
        purifier = chosen.purifier(iters)
        found = sampled(data, model, images, chosen.seed, summary)
    if chosen.reduced:
        say(chosen.reduced)
    try:
        with usage(), run(summary, [out / "report.md"], out), writing(out):
            summary.begun = True
            report = evaluation.evaluate(
                purifier, model, found.images.to(chosen.device), found.labels.to(chosen.device),
                level=level, epsilon=epsilon or 8, norm=norm, seed=chosen.seed, batch_size=batch_size,
                folder=out, tell=say,
            )  # fmt: skip
            text = written(report, out)
            click.echo(report.to_json() if as_json else text)
    except (ending.Stopped, evaluation.StoreError) as stop:
        ending.end(ending.STOPPED, f"{stop}.")
    except (RuntimeError, MemoryError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        ending.end(ending.STOPPED, f"{reason}. The same command resumes; a smaller --batch-size begins anew.")
    if summary.ended:
        say(summary.ended)
    raise SystemExit(summary.exit_code)
