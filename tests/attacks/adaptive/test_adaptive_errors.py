"""Everything that must be refused, before any gradient is taken."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attacks.adaptive.defended import Blur, Rounded, batch, network
from torch import nn

from dipdefense import DIPConfig, DIPPurifier
from dipdefense.attacks.adaptive import (
    BPDA,
    Checkpoint,
    KnownSeed,
    LowFrequency,
    Square,
    StandIn,
    Threat,
    Trajectory,
    Transfer,
    Unrolled,
)
from dipdefense.randomization import RandomResizePad

LINF = Threat(epsilon=8)


class NoModule:
    pass


IMAGES, LABELS = batch()
ERRORS = {
    "epsilon": (lambda: Threat(epsilon=8 / 255), ValueError, "write 8, not 8/255"),
    "no norm": (lambda: Threat(epsilon=8, norm="L1"), ValueError, "norm must be"),
    "negative": (lambda: Threat(epsilon=-1, norm="L2"), ValueError, "epsilon must be a positive number"),
    "steps": (lambda: BPDA(steps=0), ValueError, "steps must be"),
    "half a step": (lambda: BPDA(steps=2.5), TypeError, "steps must be"),
    "rule": (lambda: BPDA(rule="adam"), ValueError, 'rule must be "pgd" or "apgd"'),
    "loss": (lambda: BPDA(loss="hinge"), ValueError, "loss must be"),
    "step size": (lambda: BPDA(step_size=3), ValueError, "step_size must be a positive number of at most 2"),
    "backward": (lambda: BPDA(backward="exact"), ValueError, "backward must be"),
    "no known sample": (lambda: KnownSeed(known=None), ValueError, "known must be the seed"),
    "known samples": (lambda: KnownSeed(samples=3), ValueError, "samples must be 1"),
    "adam_eps": (lambda: Unrolled(adam_eps=0), ValueError, "adam_eps must be a positive number, or None"),
    "kept": (lambda: LowFrequency(kept=0), ValueError, "kept must be"),
}
CALLS = {
    "no module": (BPDA(), {"defence": NoModule()}, TypeError, "defence must be a torch.nn.Module"),
    "no classifier": (BPDA(), {"classifier": NoModule()}, TypeError, "classifier must be"),
    "no threat": (BPDA(), {"threat": 8}, TypeError, r"threat must be a Threat such as Threat\(epsilon=8\)"),
    "images": (BPDA(), {"images": IMAGES * 255}, ValueError, "images must lie in"),
    "labels": (BPDA(), {"labels": LABELS + 9}, ValueError, r"labels must lie in \[0, 5\)"),
    "float labels": (BPDA(), {"labels": LABELS.float()}, TypeError, "labels must be"),
    "seed": (BPDA(), {"seed": 0.5}, TypeError, "seed must be"),
    "seeds": (BPDA(), {"seed": [1, 2]}, ValueError, "got 2 seeds for 4 images"),
    "unseeded checkpoint": (BPDA(), {"seed": None, "checkpoint": Checkpoint("x.pt")}, ValueError, "seed must be given"),
    "path": (BPDA(), {"checkpoint": "x.pt"}, TypeError, "checkpoint must be a Checkpoint"),
    "trajectory": (Trajectory(), {}, ValueError, "Rounded has no trajectory"),
    "unrolled": (Unrolled(), {}, TypeError, "defence must be a DIPPurifier"),
    "variant": (
        Unrolled(),
        {"defence": DIPPurifier(2, config=DIPConfig(activation="elu"))},
        ValueError,
        "only the original network can be unrolled, and the defence's has activation",
    ),
    "no gradient": (BPDA(backward="own"), {"defence": Blur()}, ValueError, "output has no gradient"),
    "no identity": (BPDA(backward="identity"), {"defence": RandomResizePad()}, ValueError, "no identity between"),
    "stand-in": (StandIn(), {"defence": RandomResizePad()}, ValueError, "a stand-in keeps the shape"),
    "targets": (BPDA(targeted=True, restarts=5), {}, ValueError, "restarts must be fewer than the classes"),
    "logits": (BPDA(), {"classifier": nn.Flatten(0)}, ValueError, "classifier must return"),
}


@pytest.mark.parametrize(("make", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_hyperparameters(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(("attack", "change", "error", "message"), CALLS.values(), ids=CALLS)
def test_bad_calls(attack, change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "defence": Rounded(), "classifier": network(), "images": IMAGES, "labels": LABELS,
        "threat": LINF, "seed": 0, **change,
    }  # fmt: skip
    positional = [arguments.pop(name) for name in ("defence", "classifier", "images", "labels")]
    with pytest.raises(error, match=message):
        attack(*positional, **arguments)


@pytest.mark.parametrize("attack", [Transfer(), Square()], ids=lambda attack: type(attack).__name__)
def test_a_missing_library_is_named(attack, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyautoattack", "pyautoattack.square", "pyautoattack.autopgd_base"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "dipdefense\[attacks\]"'):
        attack(Rounded(), network(), IMAGES, LABELS, threat=LINF, seed=0)


@pytest.mark.parametrize("side", [4, 12, 14], ids=lambda side: f"{side} pixels")
def test_square_for_l2_names_the_sides_that_it_takes(side: int) -> None:
    images, labels = batch(side=side)
    with pytest.raises(ValueError, match="such as 32 or 224; got"):
        Square(queries=3)(Rounded(), network(), images, labels, threat=Threat(epsilon=1, norm="L2"), seed=0)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None], ids=["empty", "text", "another attack's"])
def test_a_file_that_is_no_checkpoint_of_this_attack(content, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "attack.pt")
    if content is None:
        BPDA(steps=1)(Rounded(), network(), IMAGES, LABELS, threat=LINF, seed=1, checkpoint=checkpoint)
    else:
        checkpoint.path.write_bytes(content)
    message = "is the checkpoint of another attack" if content is None else "is not a checkpoint"
    with pytest.raises(ValueError, match=message):
        BPDA(steps=1)(Rounded(), network(), IMAGES, LABELS, threat=LINF, seed=0, checkpoint=checkpoint)


def convolution(weight: float) -> nn.Module:
    layer = nn.Conv2d(3, 3, 1)
    nn.init.constant_(layer.weight, weight)
    return layer


DIP = DIPConfig(scales=1, channels=4, skip_channels=2, input_channels=3)
DEFENCES = {
    "weights": [convolution(weight) for weight in (1.0, 2.0)],
    "configuration": [DIPPurifier(1, config=replace(DIP, learning_rate=rate)) for rate in (0.01, 0.02)],
    "variant": [DIPPurifier(1, config=replace(DIP, activation=name)) for name in ("leaky_relu", "elu")],
}


@pytest.mark.parametrize("defences", DEFENCES.values(), ids=DEFENCES)
def test_another_defences_checkpoint(defences: list[nn.Module], tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "attack.pt")
    one, other = defences
    settings = {"threat": LINF, "seed": 0, "checkpoint": checkpoint}
    first = BPDA(steps=1)(one, network(), IMAGES, LABELS, **settings)
    with pytest.raises(ValueError, match="another attack"):
        BPDA(steps=1)(other, network(), IMAGES, LABELS, **settings)
    # Files of earlier versions do not know their defence.
    saved = torch.load(checkpoint.path, weights_only=True)
    del saved["defence"]
    torch.save(saved, checkpoint.path)
    assert torch.equal(BPDA(steps=1)(one, network(), IMAGES, LABELS, **settings), first)


def test_another_classifiers_checkpoint(tmp_path: Path) -> None:
    checkpoint, other = Checkpoint(tmp_path / "attack.pt"), network()
    BPDA(steps=1)(Rounded(), other, IMAGES, LABELS, threat=LINF, seed=0, checkpoint=checkpoint)
    with torch.no_grad():
        other[0].bias.add_(1)
    with pytest.raises(ValueError, match="another attack"):
        BPDA(steps=1)(Rounded(), other, IMAGES, LABELS, threat=LINF, seed=0, checkpoint=checkpoint)
