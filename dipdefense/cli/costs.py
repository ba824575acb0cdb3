"""The seconds and memory of a reconstruction, estimated from a few iterations."""

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
    """The cost of a reconstruction.

    Attributes:
        images: number of images fitted at once.
        measured: number of iterations that were timed.
        seconds: for one image and all iterations, predicted.
        memory: peak bytes of all images together; None where the system does not report it.
        expected: bytes for one image that the library plans with.
        free: bytes that were free before.
    """

    images: int
    measured: int
    seconds: float
    memory: int | None
    expected: int
    free: int


class _EnoughError(Exception):
    """Enough iterations have been timed."""


def measure(network: Network, *, side: int, iters: int, images: int, budget: float) -> Cost:
    """Time iterations for ``budget`` seconds, and predict the cost of ``iters``.

    At least three are timed, unless ``iters`` is smaller. The first iteration, in which libraries choose algorithms and
    allocate memory, counts once. The mean of the others stands for all that follow: the load of a busy machine belongs
    to its cost.

    Args:
        network: the networks to fit.
        side: height and width of the images in pixels.
        iters: number of iterations to predict for.
        images: number of images fitted at once.
        budget: seconds to measure for.

    Raises:
        ValueError: the images are too small for the networks.
    """
    purifier = network.purifier(iters, batch_size=images)
    batch = torch.rand(images, 3, side, side, device=network.device)
    room = purifier.room_for(batch)
    purifier.backend_for(batch)  # runs a GPU's trial of backends, whose outcome the process keeps
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
    first, *further = (later - earlier for earlier, later in itertools.pairwise(ends))
    each = statistics.fmean(further) if further else 0.0
    total = first + (iters - 1) * each
    return Cost(images, len(ends) - 1, total / images, peak.grown(), room.each, room.free)
