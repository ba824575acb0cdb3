"""Purification of image files: whole batches are fitted, and each output is written as soon as it is known."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from dipdefense import __version__
from dipdefense.cli import ending, jobs
from dipdefense.cli.jobs import Job
from dipdefense.cli.listing import Item
from dipdefense.cli.network import Network
from dipdefense.cli.outputs import refuse_to_replace, run, writing
from dipdefense.cli.progress import Progress, say
from dipdefense.cli.summary import Summary
from dipdefense.files import ImageFile, UnreadableImage, read_bytes, read_image, write_image
from dipdefense.purifier import DIPPurifier
from dipdefense.reconstruct import Reconstruction


@dataclass(frozen=True)
class Purification:
    """What a command line asked for.

    Attributes:
        items: the image files.
        names: each one's output below its folder.
        folders: the folder of each budget's outputs.
        lock: the folder that is held against other runs; None for a single image.
        network: how the images are fitted.
        purifier: the same, ready.
        max_side: pixels of the longer side, to which larger images are reduced.
        overwrite: whether files that are in the way are replaced.
    """

    items: Sequence[Item]
    names: Sequence[PurePosixPath]
    folders: Mapping[int, Path]
    lock: Path | None
    network: Network
    purifier: DIPPurifier
    max_side: int | None
    overwrite: bool

    @property
    def outputs(self) -> list[Path]:
        """Every file that will be written."""
        return [folder / name for folder in self.folders.values() for name in self.names]


def purify(asked: Purification) -> Summary:
    """Purify the files whose outputs are not there yet.

    Raises:
        ValueError: files of another origin or other settings are in the way; nothing was done.
        Stopped: another run writes into the same folder; nothing was done.
        OSError: the folder cannot be written; nothing was done.
    """
    summary = Summary(len(asked.items))
    with run(summary, asked.outputs, asked.lock):
        _fit_all(asked, _plan(asked, summary), summary)
    return summary


def _plan(asked: Purification, summary: Summary) -> list[Job]:
    """The jobs of all files that can be read."""
    found = []
    settings = {**asked.network.decisive(), "max_side": asked.max_side}
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

    todo = [batch for batch in jobs.batches(planned, at_once) if jobs.unfinished(batch)]
    with Progress(sum(map(len, todo))) as progress:
        for batch in todo:
            with progress.batch(len(batch)):
                if batch[0].shape in reasons:
                    for job in batch:
                        summary.fail(job.item.name, reasons[batch[0].shape])
                else:
                    _fit(asked, batch, summary, progress.advance)


def _fit(asked: Purification, batch: Sequence[Job], summary: Summary, advance: Callable[[float], object]) -> None:
    """Fit a batch and write what is not there; where the batch fails, each of its images by itself."""
    images: list[tuple[Job, ImageFile]] = []
    for job in batch:
        try:
            images.append((job, _read(job, asked.max_side)))
        except UnreadableImage as error:
            summary.fail(job.item.name, error.reason)
    if not jobs.unfinished([job for job, _ in images]):
        return
    budgets = tuple(asked.folders)

    def iterated(count: int) -> None:
        ending.check()
        advance(count / budgets[-1])

    try:
        fitted = asked.purifier.reconstruct(
            torch.stack([image.pixels for _, image in images]).to(asked.network.device),
            budgets=budgets,
            seed=[job.seed for job, _ in images],
            on_iteration=iterated,
        )
    except Exception as error:
        failure = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    else:
        for index, (job, image) in enumerate(images):
            _write(job, image, fitted, index, summary)
        return
    # Outside the except block, where the traceback holds no tensors any more.
    if len(images) == 1:
        summary.fail(images[0][0].item.name, failure)
        return
    say(f"{len(images)} images could not be fitted together ({failure}); each is fitted by itself.")
    for job, _ in images:
        _fit(asked, [job], summary, lambda _: None)


def _read(job: Job, limit: int | None) -> ImageFile:
    content = read_bytes(job.item.path)
    if jobs.digest_of(content) != job.digest:
        raise UnreadableImage(job.item.name, "it was changed during the run; the same command takes it as it is now")
    image = read_image(content, name=job.item.name)
    notes = list(image.notes)
    size = tuple(image.pixels.shape[1:])
    if size != job.shape[1:]:
        notes.append(f"its {size[1]}×{size[0]} pixels are reduced to {job.shape[2]}×{job.shape[1]}")
    alpha = None if image.alpha is None else jobs.reduced(image.alpha, limit)
    if image.bits == 16 and alpha is not None:
        notes.append("its 16 bits become 8, because it has transparency")
    pixels = jobs.reduced(image.pixels, limit)
    return ImageFile(image.name, pixels, alpha, image.bits, image.icc, tuple(notes))


def _write(job: Job, image: ImageFile, fitted: Reconstruction, index: int, summary: Summary) -> None:
    """Write the outputs of a job that are not there."""
    problems = []
    for budget in job.to_do:
        output, path = fitted.images[fitted.budgets.index(budget), index], job.outputs[budget]
        if not bool(output.isfinite().all()):
            problems.append(f"its network diverged within {budget} iterations; another --seed may not")
            continue
        text = job.records[budget].metadata(dipdefense=__version__, torch=torch.__version__, backend=fitted.backend)
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
