"""``dipdefense attack``: defence-unaware adversarial versions of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dipdefense.cli import ending
from dipdefense.cli.options import (
    COUNT,
    EXISTING,
    SEED,
    WRITTEN,
    Command,
    as_json,
    classifier,
    full_names,
    overwrite,
    usage,
)  # fmt: skip

_NAMES = {"fgsm": "FGSM", "bi": "BI", "llci": "LLCI", "noise": "noise"}


@click.command(cls=Command)
@click.argument("source", metavar="IN", type=EXISTING)
@click.argument("out", metavar="OUT", type=WRITTEN)
@click.option("--attack", "attack_name", type=click.Choice(tuple(_NAMES)), default="fgsm", show_default=True)
@click.option(
    "--epsilon", type=click.FloatRange(1, 255), default=5, show_default=True, help="Strength in units of 1/255."
)
@click.option(
    "--label", type=click.IntRange(0), help="True class of every image.  [default: the classifier's prediction]"
)
@classifier
@click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda where there is one]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the random noise.")
@click.option("--batch-size", type=COUNT, default=16, show_default=True, help="Images attacked at once.")
@overwrite
@full_names
@as_json
def command(
    source: Path,
    out: Path,
    attack_name: str,
    epsilon: float,
    overwrite: bool,
    full_names: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write an adversarial version of each image of IN, a file or a folder, into OUT.

    The images are first resized and cropped for the classifier. The attack knows of no defence: accuracy under it is
    not robustness. OUT gets 8-bit PNGs, so the perturbed pixels are rounded, and the classes printed after the attack
    are those of the rounded images.
    """
    from dipdefense.attacks import Attack
    from dipdefense.cli import listing
    from dipdefense.cli.attacking import Campaign, craft
    from dipdefense.cli.progress import say

    with usage():
        folder, name = listing.split_out(source, out)
        items = listing.found(source, without=folder)
        names = listing.output_names(items, source, full=full_names) if name is None else [name]
        outputs = [folder / own for own in names]
        listing.refuse_originals(items, outputs)
        attack = Attack(_NAMES[attack_name], epsilon, rounded=True)  # type: ignore[arg-type]
        campaign = Campaign(attack, items, outputs, folder if source.is_dir() else None, overwrite, **options)
    say(f"{attack}: defence-unaware, so accuracy under it is not robustness.")
    try:
        with usage():
            summary, changed = craft(campaign)
    except ending.Stopped as stop:
        ending.end(ending.STOPPED, f"{stop}.")
    summary.show(as_json=as_json, attack=str(attack), setting="defence-unaware, rounded to 8 bits", classes=changed)
    raise SystemExit(summary.exit_code)
