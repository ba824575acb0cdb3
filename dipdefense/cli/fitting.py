"""Reconstructions of a batch of image files, fitted in this process or a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dipdefense.cli import ending, jobs
from dipdefense.cli.jobs import Job
from dipdefense.files import ImageFile, UnreadableImage, read_bytes, read_image
from dipdefense.purifier import DIPPurifier


@dataclass(frozen=True)
class Fitted:
    """The outcome of one image.

    Attributes:
        job: the image.
        failure: why it has no reconstruction; empty if it has one.
        outputs: (budgets, C, H, W) in [0, 1], on the CPU.
        image: its file, without the pixels.
        backend: the backend that fitted it.
        stopped: the iteration of its last output.
    """

    job: Job
    failure: str = ""
    outputs: Tensor | None = None
    image: ImageFile | None = None
    backend: str = ""
    stopped: int = 0


class Fitter:
    """Fits a batch, or each of its images by itself where the batch fails.

    Args:
        purifier: the defence.
        budgets: iteration counts.
        max_side: the most pixels of the longer side; larger images are reduced.
        device: the device to fit on.
    """

    def __init__(
        self, purifier: DIPPurifier, budgets: tuple[int, ...], max_side: int | None, device: torch.device
    ) -> None:
        self._purifier, self._budgets, self._max_side, self._device = purifier, budgets, max_side, device

    def __call__(self, batch: Sequence[Job], advance: Callable[[float], object] = lambda _: None) -> list[Fitted]:
        """Fit a batch.

        Args:
            batch: images of one shape. Finished ones are fitted again beside unfinished ones, because an image's
                rounding may depend on its neighbours.
            advance: called with the number of images done, in fractions, after every iteration.

        Returns:
            One outcome for each image; none for an image alone that is finished.
        """
        images: list[tuple[Job, ImageFile]] = []
        found: list[Fitted] = []
        for job in batch:
            try:
                images.append((job, self._read(job)))
            except UnreadableImage as error:
                if job.to_do:
                    found.append(Fitted(job, error.reason))
        if not jobs.unfinished([job for job, _ in images]):
            return found
        try:
            return found + self._fit(images, advance)
        except Exception as error:
            failure = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        # Outside the except block, where the traceback holds no tensors any more.
        if len(images) == 1:
            return [*found, Fitted(images[0][0], failure)]
        for job, _ in images:
            for alone in self([job]):  # none for an image that was done before
                if alone.image is not None:
                    note = f"it was fitted by itself, since fitting {len(images)} images at once failed: {failure}"
                    alone = replace(alone, image=replace(alone.image, notes=(*alone.image.notes, note)))
                found.append(alone)
        return found

    def _fit(self, images: Sequence[tuple[Job, ImageFile]], advance: Callable[[float], object]) -> list[Fitted]:
        def iterated(count: int) -> None:
            ending.check()
            advance(count / self._budgets[-1])

        run = self._purifier.reconstruct(
            torch.stack([image.pixels for _, image in images]).to(self._device),
            budgets=self._budgets,
            seed=[job.seed for job, _ in images],
            on_iteration=iterated,
        )
        return [
            Fitted(job, "", outputs, replace(image, pixels=torch.empty(0)), run.backend, stopped)
            for (job, image), outputs, stopped in zip(images, run.images.cpu().unbind(1), run.stopped, strict=True)
        ]

    def _read(self, job: Job) -> ImageFile:
        content = read_bytes(job.item.path)
        if jobs.digest_of(content) != job.digest:
            reason = "it changed during the run; the same command purifies the new version"
            raise UnreadableImage(job.item.name, reason)
        image = read_image(content, name=job.item.name)
        notes = list(image.notes)
        size = tuple(image.pixels.shape[1:])
        if size != job.shape[1:]:
            notes.append(f"its {size[1]}×{size[0]} pixels are reduced to {job.shape[2]}×{job.shape[1]}")
        alpha = None if image.alpha is None else jobs.reduced(image.alpha, self._max_side)
        return replace(image, pixels=jobs.reduced(image.pixels, self._max_side), alpha=alpha, notes=tuple(notes))
