"""Random arguments, good or bad: a result, or an error that names an argument."""

from __future__ import annotations

import itertools
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dipdefense import DIPConfig, DIPPurifier, Reconstruction, reconstruct
from dipdefense.arguments import shown
from dipdefense.art import DIPPreprocessor, RandomizationPreprocessor
from dipdefense.randomization import RandomizationDefence, RandomResizePad, random_resize_pad

TINY = DIPConfig(scales=1, channels=2, skip_channels=1, input_channels=2)
DIVERGING = DIPConfig(scales=1, channels=2, learning_rate=1e30)

# Values that somebody may pass by a slip, in place of any argument.
JUNK = [
    *(None, True, False, "", "1", b"1", "auto", "torch", "clip", "raise", 1j, ..., object, object(), lambda: None),
    *(0, -1, 2**31, 2**63, 2**64, -(2**70), 10**30, 10**400, 10**5000, 0.5, 1.0, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), -float("inf"), np.float32(0.5), np.float64("nan"), np.int8(-3), np.bool_(True)),
    *((), (0,), [1, 2], [0.5], ["a"], (1, 2, 3), {1, 2}, {}, {"a": 1}, range(10**30), (None,), ((1, 2), (3, 4))),
    *(np.zeros(0), np.array(2), np.array([1, 2]), np.eye(3), np.array(["a"]), np.array([None, 1], dtype=object)),
    *(torch.tensor(1), torch.tensor([1, 2]), torch.tensor(0.5), torch.tensor(True), torch.zeros(0), torch.zeros(2, 2)),
    *(nn.Identity(), DIPConfig(), ZeroDivisionError("x"), itertools.count, Path("a.png")),
]


def rand(*shape: int, **options: Any) -> torch.Tensor:
    return torch.rand(*shape, **options)


def grey(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((2, 3, 8, 8), value, dtype=dtype)


GOOD = [rand(2, 3, 8, 8), rand(1, 1, 9, 6), rand(0, 3, 8, 8)]
IMAGES = [
    *(*GOOD, rand(3, 4, 7, 8, dtype=torch.float64), rand(2, 6, 8, 8), rand(2, 3, 8, 8).requires_grad_()),
    *(grey(0.5, torch.float16), grey(1, torch.bfloat16), grey(65504, torch.float16), grey(0.5, torch.float8_e5m2)),
    *(rand(2, 3, 8, 8) * 3 - 1, rand(2, 3, 8, 8) * 255, grey(1e30), grey(-1e-6)),
    *(grey(float("nan")), grey(-float("inf")), grey(1, torch.uint8), grey(1, torch.int64), grey(1, torch.bool)),
    *(grey(1, torch.complex64), rand(2, 3, 8, 8).to_sparse(), rand(2, 3, 8, 8, device="meta"), [rand(3, 8, 8)]),
    *(rand(3, 8, 8), rand(8, 8, 3), rand(2, 8, 8, 3), rand(2, 3, 8), rand(1, 2, 3, 8, 8), rand(2, 3, 16, 8)[:, :, ::2]),
    *(rand(2, 3, 1, 1), rand(2, 3, 0, 8), rand(2, 0, 8, 8), rand(2, 3, 2, 8)),
    *(rand(2, 3, 8, 8).double().numpy(), grey(1).byte().numpy(), rand(2, 3, 8, 8).numpy()),
]
SEEDS = [None, 0, 2**63 - 1, (1, 2), [0, 1], range(2), np.array([3, 4]), np.int64(7), torch.tensor([5, 6])]
CLIP_VALUES = [(0, 1), [-1.0, 1.0], (0, 255), np.array([0.0, 2.0]), ([0, 0, 0], [1, 2, 3]), (np.zeros((3, 1, 1)), 1)]
BOOLEANS = [True, False]

CONFIG = {
    "scales": [None, 1, 2, 16, np.int64(1)],
    "channels": [1, 3, 8192],
    "skip_channels": [0, 1],
    "input_channels": [1, 2],
    "input_scale": [0.1, 1, 1e30],
    "noise_std": [0, 0.1, 1e30],
    "learning_rate": [0.01, 1, 1e30, 1e-320],
    "betas": [(0.9, 0.999), [0, 0.5], np.array([0.1, 0.2])],
    "adam_eps": [1e-8, 1e-320, 1e30],
    "leaky_slope": [0, 0.2],
    "norm_eps": [1e-5, 1e-320],
}
PURIFIER = {
    "iters": [1, 2, np.int32(2)],
    "config": [TINY, TINY, DIPConfig(scales=2, channels=2), DIPConfig(scales=16), DIVERGING],
    "seed": SEEDS,
    "batch_size": ["auto", 1, 2, 10**30],
    "out_of_range": ["raise", "clip"],
    "gradient": ["straight-through", "none"],
    "precision": ["auto", "fp32", "bf16"],
    "backend": ["torch", "torch", "torch", "cudagraphs"],
    "progress": [False],
}
RECONSTRUCT = {
    "images": IMAGES,
    "budgets": [(1,), (1, 2), [2], range(1, 3), np.array([1, 2]), (2, 1), (1, 1)],
    **{name: PURIFIER[name] for name in ("config", "seed", "precision", "backend")},
    "on_iteration": [None, lambda: None],
}
RANDOMISATION = {"seed": SEEDS, "out_of_range": ["raise", "clip"]}
SHARED = {
    "clip_values": CLIP_VALUES,
    "device_type": ["cpu", "gpu"],
    **dict.fromkeys(("channels_first", "apply_fit", "apply_predict"), BOOLEANS),
}
ART = {**{name: PURIFIER[name] for name in ("iters", "config", "seed", "batch_size", "precision", "backend")}, **SHARED}


def run(purifier: DIPPurifier, images: Any) -> None:
    purifier(images)


def several(purifier: DIPPurifier, images: Any) -> None:
    assert isinstance(purifier.reconstruct(images, budgets=(1,)), Reconstruction)


def call(defence: Any, images: Any) -> None:
    defence(images)


# The target, its arguments, what is done with what it returns, and the arguments of which one must be given.
TARGETS: dict[str, tuple[Callable[..., Any], dict[str, list[Any]], Callable[..., None] | None, tuple[str, ...]]] = {
    "DIPConfig": (DIPConfig, CONFIG, None, ()),
    "reconstruct": (reconstruct, RECONSTRUCT, None, ("images", "budgets", "config")),
    "DIPPurifier": (DIPPurifier, PURIFIER, run, ("iters", "config")),
    "DIPPurifier.reconstruct": (DIPPurifier, PURIFIER, several, ("iters", "config")),
    "RandomResizePad": (RandomResizePad, RANDOMISATION, call, ()),
    "random_resize_pad": (random_resize_pad, {"images": IMAGES, **RANDOMISATION}, None, ("images",)),
    "RandomizationDefence": (
        RandomizationDefence,
        {"classifier": [nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())], "passes": [1, 2], **RANDOMISATION},
        call,
        ("classifier", "passes"),
    ),
    "DIPPreprocessor": (DIPPreprocessor, ART, call, ("iters", "config")),
    "RandomizationPreprocessor": (RandomizationPreprocessor, {"seed": SEEDS, **SHARED}, call, ()),
}


def arguments(choices: random.Random, options: dict[str, list[Any]], required: tuple[str, ...]) -> dict[str, Any]:
    """A random selection of arguments, each of them junk now and then."""
    names = [name for name in options if name in required or choices.random() < 0.5]
    junk = choices.choice([0, 0.05, 0.3])
    return {name: choices.choice(JUNK if choices.random() < junk else options[name]) for name in names}


def outcome(choices: random.Random, name: str) -> str:
    """Call the target once: "ok", "refused", or a failure of the test."""
    target, options, use, required = TARGETS[name]
    given = arguments(choices, options, required)
    images = choices.choice(JUNK) if choices.random() < 0.1 else choices.choice(choices.choice([GOOD, IMAGES]))
    named = {*given, "images", "x"}
    try:
        made = target(**given)
        if use is not None:
            use(made, images)
    except (TypeError, ValueError) as error:
        if not any(re.search(rf"\b{argument}\b", str(error)) for argument in named):
            pytest.fail(f"{name}({list(map(shown, given.items()))}) of {shown(images)}: {error!r} names no argument")
        return "refused"
    except Exception as error:
        pytest.fail(f"{name}({list(map(shown, given.items()))}) of {shown(images)}: {error!r}")
    return "ok"


def fuzz(name: str, count: int) -> None:
    choices = random.Random(f"{name} 20190711")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [outcome(choices, name) for _ in range(count)]
    # Neither kind so rare that the other alone is tested.
    assert min(outcomes.count("ok"), outcomes.count("refused")) > count / 20


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_a_few_arguments(name: str) -> None:
    fuzz(name, 60)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", TARGETS)
def test_thousands_of_arguments(name: str) -> None:
    fuzz(name, 1500)
