"""Seconds and memory of a reconstruction on this machine, from a few of its iterations."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from dataclasses import dataclass

import torch

from dipdefense.cli import ending
from dipdefense.cli.network import Network
from dipdefense.machine import PeakMemory


@dataclass(frozen=True)
class Cost:
    """A reconstruction's, measured.

    Attributes:
        images: fitted at once.
        measured: iterations that were timed.
        seconds: an image, predicted for all iterations.
        memory: bytes that all of them took at the peak; None where the system does not tell.
        expected: bytes an image that the defence plans with.
        free: bytes that were free.
    """

    images: int
    measured: int
    seconds: float
    memory: int | None
    expected: int
    free: int


class _EnoughError(Exception):
    """The iterations that are needed were timed."""


def measure(network: Network, *, side: int, iters: int, images: int, budget: float) -> Cost:
    """Time iterations of images of a size until a number of seconds is over, three at least.

    The first iteration, in which libraries choose their ways and memory is taken, counts once; the others' mean stands
    for all that follow, since a busy machine is to be measured as it is.

    Args:
        network: the networks.
        side: pixels of each side.
        iters: iterations to predict for.
        images: fitted at once.
        budget: seconds to measure for.

    Raises:
        ValueError: the networks do not fit the size.
    """
    purifier = network.purifier(iters, batch_size=images)
    batch = torch.rand(images, 3, side, side, device=network.device)
    room = purifier.room_for(batch)
    peak = PeakMemory(network.device)
    ends = [time.monotonic()]

    def iterated(_: int) -> None:
        ending.check()
        if network.device.type == "cuda":
            torch.cuda.synchronize(network.device)
        ends.append(time.monotonic())
        if len(ends) > 3 and ends[-1] - ends[0] > budget:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        purifier.reconstruct(batch, budgets=(iters,), seed=0, on_iteration=iterated)
    first, further = ends[1] - ends[0], [later - earlier for earlier, later in itertools.pairwise(ends)]
    each = statistics.fmean(further) if further else 0.0
    total = first + (iters - 1) * each
    return Cost(images, len(ends) - 1, total / images, peak.grown(), room.each, room.free)
