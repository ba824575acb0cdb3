"""Purification of image files, batch by batch.

The outputs of each batch are written as soon as it is fitted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from dipdefense import __version__
from dipdefense.cli import ending, jobs
from dipdefense.cli.ending import Stopped
from dipdefense.cli.fitting import Fitted, Fitter
from dipdefense.cli.jobs import Job
from dipdefense.cli.listing import Item
from dipdefense.cli.network import Network
from dipdefense.cli.outputs import refuse_to_replace, run, writing
from dipdefense.cli.progress import Progress
from dipdefense.cli.summary import Summary
from dipdefense.files import UnreadableImage, write_image
from dipdefense.purifier import DIPPurifier


@dataclass(frozen=True)
class Purification:
    """The purification of one command line.

    Attributes:
        items: the image files.
        names: the path of each one's output below a budget's folder.
        folders: the folder of each budget's outputs.
        lock: the folder to lock against other runs; None for a single image.
        network: the networks and how they are fitted.
        purifier: the defence made of them.
        max_side: the most pixels of the longer side; larger images are reduced.
        overwrite: whether files of other settings or another origin are replaced.
        spread: calls a function with every batch in other processes, as ``dipdefense.distributed.spread`` does; None
            for this process.
    """

    items: Sequence[Item]
    names: Sequence[PurePosixPath]
    folders: Mapping[int, Path]
    lock: Path | None
    network: Network
    purifier: DIPPurifier
    max_side: int | None
    overwrite: bool
    spread: Callable[[Fitter, Sequence[list[Job]]], Iterator[tuple[int, list[Fitted]]]] | None = None

    @property
    def outputs(self) -> list[Path]:
        """All output files."""
        return [folder / name for folder in self.folders.values() for name in self.names]


def purify(asked: Purification) -> Summary:
    """Purify the images whose outputs are not finished.

    Raises:
        ValueError: files of other settings or another origin are in the way; nothing was done.
        Stopped: another run is writing into the same folder; nothing was done.
        OSError: the folder cannot be written; nothing was done.
    """
    summary = Summary(len(asked.items))
    with run(summary, asked.outputs, asked.lock):
        _fit_all(asked, _plan(asked, summary), summary)
    return summary


def _plan(asked: Purification, summary: Summary) -> list[Job]:
    """The jobs of all readable files."""
    found = []
    rule = asked.purifier.stopping
    settings = {
        **asked.network.decisive(), "max_side": asked.max_side, "stopping": None if rule is None else repr(rule),
    }  # fmt: skip
    for item, name in zip(asked.items, asked.names, strict=True):
        ending.check()
        outputs = {budget: folder / name for budget, folder in asked.folders.items()}
        try:
            found.append(jobs.job_of(item, outputs, seed=asked.network.seed_of(item.name), settings=settings))
        except UnreadableImage as error:
            summary.fail(item.name, error.reason)
    if not asked.overwrite:
        refuse_to_replace([reason for job in found for reason in job.in_the_way])
    return found


def _fit_all(asked: Purification, planned: Sequence[Job], summary: Summary) -> None:
    summary.begun = True
    summary.kept = sum(not job.to_do for job in planned)
    reasons: dict[jobs.Shape, str] = {}

    @functools.cache
    def at_once(shape: jobs.Shape) -> int:
        try:
            return jobs.room(asked.purifier, shape, asked.network.device)
        except ValueError as error:
            reasons[shape] = str(error)
            return 1

    todo = []
    for batch in jobs.batches(planned, at_once):
        if batch[0].shape in reasons:
            for job in batch:
                if job.to_do:
                    summary.fail(job.item.name, reasons[batch[0].shape])
        elif jobs.unfinished(batch):
            todo.append(batch)
    # A worker sees one GPU, whatever its number here.
    device = asked.network.device if asked.spread is None else torch.device(asked.network.device.type)
    fitter = Fitter(asked.purifier, tuple(asked.folders), asked.max_side, device)
    with Progress(sum(map(len, todo))) as progress:
        if asked.spread is None:
            for batch in todo:
                with progress.batch(len(batch)):
                    _write(fitter(batch, progress.advance), summary)
            return
        try:
            for number, fitted in asked.spread(fitter, todo):
                with progress.batch(len(todo[number])):
                    _write(fitted, summary)
        except (RuntimeError, OSError) as error:  # an item's worker died every time, or there is no cluster
            raise Stopped(f"{error}. The same command resumes") from error


def _write(batch: Sequence[Fitted], summary: Summary) -> None:
    """Write the unfinished outputs of a batch."""
    for fitted in batch:
        job, image = fitted.job, fitted.image
        if image is None or fitted.outputs is None:
            summary.fail(job.item.name, fitted.failure)
            continue
        problems = []
        for output, budget in zip(fitted.outputs, job.outputs, strict=True):
            if budget not in job.to_do:
                continue
            if not bool(output.isfinite().all()):
                problems.append(f"its network diverged within {budget} iterations; another --seed may not")
                continue
            circumstances = {"dipdefense": __version__, "torch": torch.__version__, "backend": fitted.backend}
            text = job.records[budget].metadata(**circumstances, iterations=min(budget, fitted.stopped))
            path = job.outputs[budget]
            try:
                with writing(path):
                    write_image(path, output, alpha=image.alpha, bits=image.bits, icc=image.icc, text=text)
            except OSError as error:
                problems.append(f"{path} could not be written: {error.strerror or error}")
        if problems:
            summary.fail(job.item.name, "; ".join(problems))
        elif job.to_do:
            summary.done += 1
            summary.note(job.item.name, *image.notes)
