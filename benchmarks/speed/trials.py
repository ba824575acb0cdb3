"""Contenders that no GPU has run yet, each tried in a process of its own before anything else.

A kernel that reads where it must not ends all work of its process on that GPU, and one that never ends blocks it.
``speed.py`` starts this script once for each setting and contender, all at once: it compiles what there is to compile,
which Triton keeps for others, checks as every contender is checked, and fits with each batch size for long enough to
see whether what is replayed from a graph goes on learning.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dipdefense.config import DIPConfig
from dipdefense.reconstruct import reconstruct
from speed.contenders import Contender, check, contenders
from speed.networks import Networks, as_library, library
from speed.timing import Setting

GRAPHS, KERNELS = "dipdefense, CUDA graph", "dipdefense, Triton"

# On dark images, which every network approaches quickly: from the first iteration that is replayed to the last the
# loss falls to 40 % and less, whatever the seed.
_FIRST_REPLAYED, _ITERATIONS, _FALL = 3, 16, 0.6


def untried() -> list[Contender]:
    """The library's networks replayed from a CUDA graph, and the kernels' passes and their loop; both in bf16."""
    graphs, kernels = (functools.partial(reconstruct, precision="bf16", backend=b) for b in ("cudagraphs", "triton"))
    options: dict[str, Any] = {"operands": torch.bfloat16, "expendable": True}
    return [
        Contender(GRAPHS, library, as_library, graphs, **options),
        Contender(KERNELS, in_kernels, as_library, kernels, **options),
    ]


def in_kernels(config: DIPConfig, image_channels: int, scales: int, count: int, device: torch.device) -> Networks:
    """The networks of ``library``, drawn and differentiated by ``dipdefense.engine.kernels.engine``."""
    parameters, _ = library(config, image_channels, scales, count, device)
    names, values = list(parameters), list(parameters.values())

    class Draw(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, noise: Tensor, *values: Tensor) -> Tensor:
            from dipdefense.engine.kernels.engine import Engine

            ctx.engine = Engine(dict(zip(names, values, strict=True)), config, scales, noise.dtype)
            drawn: Tensor = ctx.engine.forward(noise.permute(0, 2, 3, 1).contiguous())
            return drawn.permute(0, 3, 1, 2).contiguous()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            ctx.engine.backward(grads[0].permute(0, 2, 3, 1).contiguous())
            found = ctx.engine.layout.unpack(ctx.engine.grads)
            return None, *(found[name] for name in names)

    return Networks(parameters, lambda noise: Draw.apply(noise, *values))


def start(contender: Contender, setting: Setting, batches: Sequence[int], *, seed: int) -> subprocess.Popen[str]:
    """Begin to try the contender in a process of its own."""
    what = {"contender": contender.name, "config": asdict(setting.config), "side": setting.side}
    command = [sys.executable, __file__, json.dumps(what | {"batches": list(batches), "seed": seed})]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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


def _try(what: Mapping[str, Any], device: torch.device) -> dict[str, float]:
    config = DIPConfig.from_json(what["config"])
    contender = contenders(device, expendable=True)[what["contender"]]
    side = what["side"]
    errors = check(contender, config, scales=config.scales_for(side, side), device=device, seed=what["seed"])
    for batch in what["batches"]:
        must_learn(contender, config, batch=batch, side=side, device=device)
    return errors._asdict()


if __name__ == "__main__":
    print(json.dumps(_try(json.loads(sys.argv[1]), torch.device("cuda"))))
