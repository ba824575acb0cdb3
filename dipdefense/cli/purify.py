"""``dipdefense purify``: image files to their reconstructions."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dipdefense.cli import ending
from dipdefense.cli.options import (
    COUNT,
    EXISTING,
    ITERATIONS,
    RULES,
    WRITTEN,
    Command,
    as_json,
    full_names,
    network,
    overwrite,
    usage,
)  # fmt: skip

if TYPE_CHECKING:
    from dipdefense.stopping import RuleName


@click.command(cls=Command)
@click.argument("source", metavar="IN", type=EXISTING)
@click.argument("out", metavar="OUT", type=WRITTEN)
@click.option("--iters", type=ITERATIONS, help="Iterations of each image's network.  [default: 1000]")
@click.option(
    "--budgets", type=ITERATIONS, multiple=True, metavar="N...",
    help="Several ascending iteration counts, such as 500 750 1000: one run, and a folder below OUT for each.",
)  # fmt: skip
@click.option(
    "--batch-size", type=COUNT,
    help="Images of one size fitted at once; with 1 an image's rounding depends on no other file.  [default: by free "
    "memory]",
)  # fmt: skip
@click.option(
    "--max-side", type=click.IntRange(32, 2**16), help="Reduce images whose longer side has more pixels than this."
)
@click.option(
    "--stopping", type=click.Choice(RULES),
    help="Rule that may end each image's fit before the last iteration.  [default: none, as in the paper]",
)  # fmt: skip
@network
@click.option(
    "--engine", type=click.Choice(("here", "ray")), default="here", show_default=True,
    help="Where to fit: in this process, or in the workers of a Ray cluster.",
)  # fmt: skip
@click.option(
    "--address", help="Address of a running Ray cluster, such as auto or 10.0.0.1:6379.  [default: this machine]"
)
@click.option(
    "--workers", type=COUNT, help="Number of Ray workers.  [default: one for each GPU, or as many as the CPUs allow]"
)
@overwrite
@full_names
@as_json
def command(
    source: Path,
    out: Path,
    iters: int | None,
    budgets: tuple[int, ...],
    batch_size: int | None,
    max_side: int | None,
    stopping: RuleName | None,
    engine: Literal["here", "ray"],
    address: str | None,
    workers: int | None,
    overwrite: bool,
    full_names: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the reconstruction of each image of IN, a file or a folder, into OUT.

    Outputs keep their names except for the suffix: all are PNGs, because a lossy format would change the
    reconstruction. They are upright and keep the original's transparency, colour profile and 16 bits per channel. Of an
    animation the first frame is purified. Subfolders are included, and hidden files are skipped.

    Images of one size are fitted together. An existing output of the same original and settings is kept, so the same
    command resumes an interrupted run. Where OUT has files of other settings or another origin, nothing is done without
    --overwrite. The metadata of each PNG holds its settings under the key "dipdefense".
    """
    if iters is not None and budgets:
        raise click.UsageError("give either --iters or --budgets")
    if engine != "ray" and (address, workers) != (None, None):
        raise click.UsageError("--address and --workers are for --engine ray")
    if any(later <= earlier for earlier, later in itertools.pairwise(budgets)):
        raise click.UsageError(
            f"--budgets must be in ascending order without repetition, got {' '.join(map(str, budgets))}"
        )

    from dipdefense.cli import listing
    from dipdefense.cli.network import asked_for
    from dipdefense.cli.progress import say
    from dipdefense.cli.purifying import Purification, purify

    with usage():
        chosen = asked_for(**options)
        folder, name = listing.split_out(source, out, several=bool(budgets))
        items = listing.found(source, without=folder)
        names = listing.output_names(items, source, full=full_names) if name is None else [name]
        counts = budgets or (iters or 1000,)
        asked = Purification(
            items,
            names,
            {count: folder / str(count) if budgets else folder for count in counts},
            folder if source.is_dir() else None,
            chosen,
            chosen.purifier(counts[-1], batch_size=batch_size or "auto", stopping=stopping),
            max_side,
            overwrite,
            _spread(address, workers, gpus=chosen.device.type == "cuda") if engine == "ray" else None,
        )
        listing.refuse_originals(items, asked.outputs)
    if chosen.reduced:
        say(chosen.reduced)
    try:
        with usage():
            summary = purify(asked)
    except ending.Stopped as stop:
        ending.end(ending.STOPPED, f"{stop}.")
    summary.show(as_json=as_json, iterations=list(counts), config=chosen.name, seed=chosen.seed)
    raise SystemExit(summary.exit_code)


def _spread(address: str | None, workers: int | None, *, gpus: bool) -> Any:
    from dipdefense import distributed

    distributed.require_ray()
    return functools.partial(distributed.spread, address=address, workers=workers, gpus=int(gpus))
