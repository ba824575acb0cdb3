"""``dipdefense classify``: the classes of image files, also behind the defence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dipdefense.cli import ending
from dipdefense.cli.options import COUNT, EXISTING, ITERATIONS, Command, classifier, network, usage

if TYPE_CHECKING:
    from dipdefense.classifiers import Classifier
    from dipdefense.cli.classifying import Row

Form = Literal["table", "csv", "json"]


@click.command(cls=Command)
@click.argument("source", metavar="IN", type=EXISTING)
@classifier
@click.option(
    "--purify", "iters", type=ITERATIONS, help="Also classify each image's reconstruction after this many iterations."
)
@click.option("--top", type=click.IntRange(1, 1000), default=1, show_default=True, help="Classes for each image.")
@click.option("--form", type=click.Choice(("table", "csv", "json")), default="table", show_default=True)
@click.option("--json", "form", flag_value="json", help="The same as --form json.")
@click.option("--batch-size", type=COUNT, default=16, show_default=True, help="Images classified at once.")
@network
def command(
    source: Path,
    classifier_name: str,
    weights: Path | None,
    iters: int | None,
    top: int,
    form: Form,
    batch_size: int,
    **options: Any,
) -> None:
    """Print the classes of each image of IN, a file or a folder, with confidences.

    Each image is resized and cropped as the classifier expects. With --purify, its reconstruction is classified too.
    """
    from dipdefense.cli import listing, reading
    from dipdefense.cli.classifying import classified, columns, printed
    from dipdefense.cli.network import asked_for
    from dipdefense.cli.progress import say
    from dipdefense.cli.summary import Summary

    with usage():
        chosen = asked_for(**options)
        items = listing.found(source)
        model = reading.load(classifier_name, weights, chosen.device)
        purifier = None if iters is None else chosen.purifier(iters)
        if purifier is not None:
            chosen.config.scales_for(model.preprocess.crop, model.preprocess.crop)
    if purifier is not None and chosen.reduced:
        say(chosen.reduced)
    summary = Summary(len(items))
    rows: list[Row] = []
    if form != "json":
        click.echo(columns(form, purified=iters is not None))
    with ending.working():
        try:
            for batch, images in reading.batches(items, model, summary, size=batch_size, device=chosen.device):
                for row in classified(batch, images, model, purifier, chosen.seed_of, summary, top=top):
                    rows.append(row)
                    if form != "json":
                        click.echo(printed(row, form))
        except ending.Interrupted as stop:
            summary.code, summary.ended = stop.code, f"{stop} after {len(rows)} of {len(items)} images."
    if form == "json":
        click.echo(_document(rows, summary, model, iters))
    elif summary.ended:
        say(summary.ended)
    raise SystemExit(summary.exit_code)


def _document(rows: list[Row], summary: Any, model: Classifier, iters: int | None) -> str:
    import json

    return json.dumps(
        {
            "classifier": model.name,
            "purified": iters,
            "images": [row.as_json() for row in rows],
            "failed": summary.failed,
            "ended": summary.ended or None,
        },
        indent=2,
    )
