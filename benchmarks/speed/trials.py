"""Contenders that no GPU has run yet, each tried in a process of its own before anything else.

A kernel that reads where it must not ends all work of its process on that GPU, and one that never ends blocks it.
The benchmark starts this module once for each setting and contender, all at once: it compiles what there is to compile,
which Triton keeps for others, checks as every contender is checked, and fits with each batch size for long enough to
see whether the loss still falls once iterations are replayed from a graph.
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

# On dark images, which every network approaches quickly: from the first iteration that is replayed to the last the
# loss falls to 40 % and less, whatever the seed.
_FIRST_REPLAYED, _ITERATIONS, _FALL = 3, 16, 0.6


def start(
    contender: Contender, setting: Setting, batches: Sequence[int], *, device: torch.device, seed: int
) -> subprocess.Popen[str]:
    """Begin to try the contender in a process of its own."""
    task = {"contender": contender.name, "config": asdict(setting.config), "side": setting.side, "device": str(device)}
    return start_module("speed.trials", task | {"batches": list(batches), "seed": seed})


def outcome(trial: subprocess.Popen[str], *, deadline: float) -> dict[str, Any]:
    """The errors that the check found; or, as ``failed``, why the contender must not be timed.

    Args:
        trial: what :func:`start` returned.
        deadline: by ``time.monotonic``; a trial that takes longer is ended.
    """
    try:
        printed, complaint = trial.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        trial.kill()
        trial.communicate()
        return {"failed": "its trial took too long"}
    if trial.returncode:
        return {"failed": (complaint.strip().splitlines() or [f"ended by signal {-trial.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def must_learn(contender: Contender, config: DIPConfig, *, batch: int, side: int, device: torch.device) -> None:
    """Fit dark images for a few iterations.

    Raises:
        ValueError: the loss does not fall between the first iteration that is replayed and the last.
    """
    images = 0.1 * torch.rand(batch, 3, side, side, device=device)
    run: Any = contender.fit(images, budgets=(_ITERATIONS,), config=config, on_iteration=lambda: None)
    losses = run.losses.mean(dim=1)
    # NaN is no fall.
    if not losses[-1] < _FALL * losses[_FIRST_REPLAYED - 1]:
        raise ValueError(f"losses of a batch of {batch} do not fall as they must: {losses.tolist()}")


def _try(task: Mapping[str, Any]) -> dict[str, float]:
    device = torch.device(task["device"])
    config = DIPConfig.from_json(task["config"])
    contender = contenders(device, expendable=True)[task["contender"]]
    side = task["side"]
    errors = check(contender, config, scales=config.scales_for(side, side), device=device, seed=task["seed"])
    for batch in task["batches"]:
        must_learn(contender, config, batch=batch, side=side, device=device)
    return errors._asdict()


if __name__ == "__main__":
    print(json.dumps(_try(json.loads(sys.argv[1]))))
