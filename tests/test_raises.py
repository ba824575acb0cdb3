"""Everything that must raise, and what it says."""

from __future__ import annotations

import pytest
import torch

from dipdefense import DIPConfig, DIPPurifier, reconstruct

GOOD = torch.rand(2, 3, 32, 32)


def spoiled(value: float) -> torch.Tensor:
    images = GOOD.clone()
    images[1, 0, 0, 0] = value
    return images


IMAGES = {
    "no tensor": (GOOD.numpy(), TypeError, r"torch\.Tensor, got ndarray"),
    "no batch axis": (GOOD[0], ValueError, r"add a batch axis with images\[None\]"),
    "rank 2": (GOOD[0, 0], ValueError, r"\(batch, channels, height, width\), got \(32, 32\)"),
    "uint8": ((GOOD * 255).byte(), TypeError, "divide uint8 images by 255"),
    "int64": (GOOD.long(), TypeError, "floating point"),
    "uint8 values": (GOOD * 255, ValueError, "divide by 255"),
    "normalised": ((GOOD - 0.485) / 0.229, ValueError, "already normalised"),
    "slightly above": (spoiled(1.01), ValueError, r"\[0, 1\]"),
    "slightly below": (spoiled(-0.01), ValueError, r"\[0, 1\]"),
    "NaN": (spoiled(float("nan")), ValueError, r"NaN or infinity is in the images at \[1\]"),
    "infinity": (spoiled(float("inf")), ValueError, r"NaN or infinity is in the images at \[1\]"),
    "too small": (torch.rand(1, 3, 31, 40), ValueError, "at least 32 pixels"),
    "no channels": (torch.rand(1, 0, 32, 32), ValueError, "at least one channel"),
}


@pytest.mark.parametrize(("images", "error", "message"), IMAGES.values(), ids=IMAGES)
def test_bad_images_raise_before_any_work(images, error, message, monkeypatch) -> None:
    monkeypatch.setattr("dipdefense.engine.fitting.SkipNets", None)  # any work would raise something else
    for call in (DIPPurifier(iters=1), lambda x: reconstruct(x, budgets=(1,))):
        with pytest.raises(error, match=message):
            call(images)


def test_rounding_beyond_the_range_is_accepted(tiny: DIPConfig) -> None:
    reconstruct(spoiled(1 + 1e-6), budgets=(1,), config=tiny)


@pytest.mark.parametrize(
    ("scales", "side", "fits"), [(5, 32, 4), (4, 16, 3), (6, 64, 5), (3, 8, 2)], ids=lambda value: str(value)
)
def test_too_many_scales_say_how_many_fit(scales: int, side: int, fits: int) -> None:
    images = torch.rand(1, 3, side, side + 9)
    config = DIPConfig(scales=scales, channels=4)
    with pytest.raises(ValueError, match=f"at most {fits} scales fit"):
        reconstruct(images, budgets=(1,), config=config)
    fitting = DIPConfig(scales=fits, channels=4)
    assert reconstruct(images, budgets=(1,), config=fitting).images.isfinite().all()


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ((), "at least one"),
        ((0, 5), "at least 1"),
        ((2.5,), "integers"),
        ((True,), "integers"),
        ((5, 3), "ascend"),
        ((3, 3), "ascend"),
        ((5, 11), "exceed iters=10"),
    ],
    ids=str,
)
def test_bad_budgets(budgets, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DIPPurifier(iters=10).reconstruct(GOOD, budgets=budgets)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"iters": 0}, ValueError, "at least 1"),
        ({"iters": 2.0}, ValueError, "integers"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": "all"}, ValueError, "batch_size"),
        ({"batch_size": True}, ValueError, "batch_size"),
        ({"config": "paper"}, TypeError, "config must be a DIPConfig"),
        ({"gradient": "exact"}, ValueError, "straight-through"),
        ({"precision": "fp16"}, ValueError, "bf16"),
        ({"seed": -1}, ValueError, "seeds must lie"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"seed": [1, "2"]}, TypeError, "one integer an image"),
    ],
    ids=str,
)
def test_bad_arguments_raise_at_construction(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        DIPPurifier(**arguments)


def test_a_wrong_number_of_seeds() -> None:
    with pytest.raises(ValueError, match="3 seeds for 2 images"):
        DIPPurifier(iters=1, seed=[1, 2, 3])(GOOD)


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ({"scales": 0}, "scales"),
        ({"channels": 0}, "channels"),
        ({"channels": 8.0}, "channels"),
        ({"skip_channels": -1}, "skip_channels"),
        ({"input_channels": 0}, "input_channels"),
        ({"input_scale": 0.0}, "input_scale"),
        ({"noise_std": -0.1}, "noise_std"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"leaky_slope": 1.5}, "leaky_slope"),
    ],
    ids=str,
)
def test_bad_configurations(numbers, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        DIPConfig(**numbers)
