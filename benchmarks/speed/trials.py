"""Trials of contenders that no GPU has run yet, each in a process of its own.

A kernel with an illegal access ends all work of its process on the GPU, and one that never ends blocks it. The
benchmark starts this module once for each setting and contender, all at once; those that run out of memory beside the
others are tried again alone. It compiles the kernels, which Triton caches for other processes, checks the contender as
every other, and fits each batch size for long enough to see whether the loss still falls when iterations are replayed
from a graph.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from dipdefense.config import DIPConfig
from speed.check import Contender, check
from speed.contenders import contenders
from speed.processes import start_module
from speed.timing import Setting

# Every network approaches dark images quickly: whatever the seed, the loss falls to 40 % or less between the first
# replayed iteration and the last.
_FIRST_REPLAYED, _ITERATIONS, _FALL = 3, 16, 0.6


TOO_LONG = "its trial took too long"
"""Why a contender is not timed of which nothing else is known."""


def start(
    contender: Contender, setting: Setting, batches: Sequence[int], *, device: torch.device, seed: int
) -> subprocess.Popen[str]:
    """Start the trial of a contender in a process of its own."""
    task = {"contender": contender.name, "config": asdict(setting.config), "side": setting.side, "device": str(device)}
    return start_module("speed.trials", task | {"batches": list(batches), "seed": seed})


def outcome(trial: subprocess.Popen[str], *, deadline: float) -> dict[str, Any]:
    """The errors that the check found, or why the contender must not be timed.

    The reason is under ``failed``.

    Args:
        trial: the process from :func:`start`.
        deadline: in seconds of ``time.monotonic``; the trial is killed then.
    """
    try:
        printed, complaint = trial.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        trial.kill()
        trial.communicate()
        return {"failed": TOO_LONG}
    if trial.returncode:
        return {"failed": (complaint.strip().splitlines() or [f"ended by signal {-trial.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def must_learn(contender: Contender, config: DIPConfig, *, batch: int, side: int, device: torch.device) -> None:
    """Check that a few iterations on dark images lower the loss.

    Raises:
        ValueError: the loss does not fall between the first iteration that is replayed and the last.
    """
    images = 0.1 * torch.rand(batch, 3, side, side, device=device)
    run: Any = contender.fit(images, budgets=(_ITERATIONS,), config=config, on_iteration=lambda: None)
    losses = run.losses.mean(dim=1)
    # NaN fails.
    if not losses[-1] < _FALL * losses[_FIRST_REPLAYED - 1]:
        raise ValueError(f"losses of a batch of {batch} do not fall as they must: {losses.tolist()}")


def _try(task: Mapping[str, Any]) -> dict[str, float]:
    device = torch.device(task["device"])
    config = DIPConfig.from_json(task["config"])
    contender = contenders(device, expendable=True)[task["contender"]]
    side = task["side"]
    errors = check(contender, config, scales=config.scales_for(side, side), device=device, seed=task["seed"])
    try:
        for batch in task["batches"]:
            must_learn(contender, config, batch=batch, side=side, device=device)
    except torch.OutOfMemoryError:
        # Too many images for this GPU, or beside the other trials: of smaller batches the contender may be timed.
        if batch == task["batches"][0]:
            raise
    return errors._asdict()


if __name__ == "__main__":
    print(json.dumps(_try(json.loads(sys.argv[1]))))
