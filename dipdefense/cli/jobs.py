"""The images of a purification, the states of their outputs, and their batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.cli.listing import Item
from dipdefense.cli.outputs import Record, State, state_of
from dipdefense.files import read_bytes, shape_of
from dipdefense.purifier import DIPPurifier

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Job:
    """An image to be purified.

    Attributes:
        item: the image file.
        digest: of the file's content.
        shape: (channels, height, width) at which it is fitted.
        seed: the image's own.
        outputs: the output file of each budget.
        records: the record that each output is to carry.
        states: the state of each output, and the reason.
    """

    item: Item
    digest: str
    shape: Shape
    seed: int
    outputs: Mapping[int, Path]
    records: Mapping[int, Record]
    states: Mapping[int, tuple[State, str]]

    @property
    def to_do(self) -> list[int]:
        """The budgets without a finished output."""
        return [budget for budget, (state, _) in self.states.items() if state != "done"]

    @property
    def in_the_way(self) -> list[str]:
        """The outputs that exist with other settings or another origin, with reasons."""
        return [
            f"{self.outputs[budget]} exists: {reason}"
            for budget, (state, reason) in self.states.items()
            if state in ("other settings", "foreign")
        ]


def job_of(item: Item, outputs: Mapping[int, Path], *, seed: int, settings: Mapping[str, object]) -> Job:
    """The job of an image file.

    Args:
        item: the file.
        outputs: the output file of each budget.
        seed: the image's own.
        settings: everything else that decides the pixels; "max_side" limits the longer side.

    Raises:
        UnreadableImage: the file cannot be read as an image.
    """
    content = read_bytes(item.path)
    digest = digest_of(content)
    channels, height, width = shape_of(content, name=item.name)
    limit = settings.get("max_side")
    records = {
        budget: Record({"command": "purify", "iterations": budget, "seed": seed, **settings}, digest)
        for budget in outputs
    }
    states = {budget: state_of(path, records[budget]) for budget, path in outputs.items()}
    size = reduced_size(height, width, limit if isinstance(limit, int) else None)
    return Job(item, digest, (channels, *size), seed, outputs, records, states)


def digest_of(content: bytes) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def reduced_size(height: int, width: int, limit: int | None) -> tuple[int, int]:
    """Height and width in pixels, the longer side reduced to at most ``limit``.

    Example:
        >>> reduced_size(3000, 4000, 512), reduced_size(30, 40, 512)
        ((384, 512), (30, 40))
    """
    longer = max(height, width)
    if limit is None or longer <= limit:
        return height, width
    return max(1, round(height * limit / longer)), max(1, round(width * limit / longer))


def reduced(image: Tensor, limit: int | None) -> Tensor:
    """(C, H, W) in [0, 1], reduced to ``reduced_size``."""
    size = reduced_size(image.shape[1], image.shape[2], limit)
    if size == image.shape[1:]:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def room(purifier: DIPPurifier, shape: Shape, device: torch.device, *, option: str = "--max-side") -> int:
    """How many images of a shape are fitted at once.

    Args:
        purifier: which fits them.
        shape: of an image.
        device: where.
        option: the command's option that makes images smaller, for the message.

    Raises:
        ValueError: the images are too small for the networks, or too large for the free memory; the message gives the
            size that fits.
    """
    found = purifier.room_for(torch.zeros(1, 1, 1, 1, device=device).expand(1, *shape))
    if found.each > found.free:
        side = int(max(shape[1:]) * math.sqrt(0.8 * found.free / found.each)) // 32 * 32
        fits = f"; give {option} {side} or less" if side >= 64 else ""
        raise ValueError(
            f"fitting its {shape[2]}×{shape[1]} pixels would take {found.each / 1e9:.1f} GB, and "
            f"{found.free / 1e9:.1f} GB are free{fits}"
        )
    return found.at_once


def batches(jobs: Iterable[Job], at_once: Callable[[Shape], int]) -> list[list[Job]]:
    """The jobs in batches to be fitted together, ordered by each batch's first job.

    Finished jobs are included: an image's rounding may depend on the images beside it, so a resumed run must form the
    same batches.
    """
    open_batches: dict[Shape, list[Job]] = {}
    found: list[list[Job]] = []
    for job in jobs:
        most, batch = at_once(job.shape), open_batches.get(job.shape)
        if batch is None or len(batch) >= most:
            batch = open_batches[job.shape] = []
            found.append(batch)
        batch.append(job)
    return found


def unfinished(batch: Sequence[Job]) -> bool:
    """Whether any image of a batch has an unfinished output."""
    return any(job.to_do for job in batch)
