"""The timing of one setting: each contender's share, the rounds and a summary."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dipdefense.config import DIPConfig
from speed.check import PUBLISHED, Contender

FEWEST, MOST = 3, 200
"""Least and most timed iterations of one fit."""

_FEWEST_ROUNDS = 3

_WARM_UP = {"cpu": 2, "cuda": 5}


@dataclass(frozen=True)
class Setting:
    """Images of one size, and the network to fit to them."""

    name: str
    side: int
    config: DIPConfig


@dataclass
class Cell:
    """One contender with one batch size.

    Attributes:
        contender: the contender.
        batch: images at once.
        iterations: timed iterations of each fit.
        seconds: for an image and 1,000 iterations, by round.
        memory: peak bytes on a GPU.
        skipped: the reason if it is not timed.
    """

    contender: Contender
    batch: int
    iterations: int = FEWEST
    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    skipped: str | None = None


class Stopwatch:
    """Times the iterations after the first ``warm_up``; call it at the end of each.

    On a GPU it records events in the stream and does not wait for the device.
    """

    def __init__(self, device: torch.device, *, warm_up: int, iterations: int) -> None:
        self._device = device
        self._bounds = (warm_up, warm_up + iterations)
        self._calls = 0
        self._marks: list[Any] = []

    def __call__(self) -> None:
        """Count one iteration, which on a GPU may only be queued."""
        self._calls += 1
        if self._calls in self._bounds:
            if self._device.type == "cuda":
                event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                event.record(torch.cuda.current_stream(self._device))
                self._marks.append(event)
            else:
                self._marks.append(time.perf_counter())

    def seconds_an_iteration(self) -> float:
        """The mean seconds of the timed iterations."""
        first, last = self._marks
        if self._device.type == "cuda":
            last.synchronize()
            elapsed = first.elapsed_time(last) / 1000
        else:
            elapsed = last - first
        return float(elapsed) / (self._bounds[1] - self._bounds[0])


def measure(
    setting: Setting, cells: Sequence[Cell], *, device: torch.device, rounds: int, seconds: float, seed: int
) -> None:
    """Fill the cells: a pilot of each, then rounds in which all take turns.

    The turns make a drift of the machine affect all cells.

    Args:
        setting: the images and the network.
        cells: in order; each contender's small batches first.
        device: the device to measure.
        rounds: the most rounds; at least three of them are run, whatever the time.
        seconds: for everything. A contender whose fewest iterations would take more than a quarter of it is not timed,
            nor with larger batches.
        seed: of images and noise; each round has other ones.
    """
    started = time.perf_counter()
    pilots: list[tuple[Cell, float, float]] = []
    given_up: dict[str, str] = {}
    for cell in cells:
        name = cell.contender.name
        if name in given_up:
            cell.skipped = f"not tried, for a smaller batch {given_up[name]}"
            continue
        begun = time.perf_counter()
        an_iteration = _fit(setting, cell, device, seed)
        if an_iteration is None:
            given_up[name] = "failed"
        elif name != PUBLISHED and rounds * _iterations(device, FEWEST) * an_iteration > seconds / 4:
            given_up[name] = "was too slow"
            cell.skipped = f"too slow: {an_iteration:.2g} s an iteration"
        else:
            pilots.append((cell, an_iteration, time.perf_counter() - begun))
    share = (seconds - (time.perf_counter() - started)) / (rounds * max(len(pilots), 1))
    for cell, an_iteration, elapsed in pilots:
        cell.iterations = max(FEWEST, min(MOST, FEWEST + int((share - elapsed) / an_iteration)))
    for number in range(1, rounds + 1):
        for cell, *_ in pilots:
            if cell.skipped is None and (an_iteration := _fit(setting, cell, device, seed + number)) is not None:
                cell.seconds.append(1000 * an_iteration / cell.batch)
        if number >= _FEWEST_ROUNDS and time.perf_counter() - started > seconds:
            break


def _iterations(device: torch.device, timed: int) -> int:
    """Iterations of a fit: warm-up, timed ones, and one more.

    A loop's last iteration may lack the backward pass, so it is not timed.
    """
    return _WARM_UP[device.type] + timed + 1


def _fit(setting: Setting, cell: Cell, device: torch.device, seed: int) -> float | None:
    """Seconds per iteration of the whole batch in the steady state.

    None if the fit fails, which skips the cell.
    """
    torch.manual_seed(seed)
    images = torch.rand(cell.batch, 3, setting.side, setting.side, device=device)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    watch = Stopwatch(device, warm_up=_WARM_UP[device.type], iterations=cell.iterations)
    budgets = (_iterations(device, cell.iterations),)
    try:
        cell.contender.fit(images, budgets=budgets, config=setting.config, on_iteration=watch)
    except Exception as error:
        if cell.contender.name == PUBLISHED or not (isinstance(error, RuntimeError) or cell.contender.expendable):
            raise
        # Out of memory, or beyond what a kernel can index: a finding about this contender, not the end of the run.
        cell.skipped = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
        cell.seconds.clear()
        return None
    if device.type == "cuda":
        cell.memory = max(cell.memory, torch.cuda.max_memory_allocated(device))
    return watch.seconds_an_iteration()


def speedups(cells: Sequence[Cell]) -> list[list[float]]:
    """By cell and round, the speed-up over the published loop in that round.

    It is empty for a cell that is not timed.
    """
    (published,) = (cell for cell in cells if cell.contender.name == PUBLISHED)
    return [
        [base / own for base, own in zip(published.seconds, cell.seconds, strict=True)] if cell.seconds else []
        for cell in cells
    ]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and range of the rounds, and the rounds themselves."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": list(values)}
