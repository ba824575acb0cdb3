"""Everything that must raise, and what it says."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.arguments import shown
from dipdefense.checks import check_images

GOOD = torch.rand(2, 3, 32, 32)


def spoiled(value: float) -> torch.Tensor:
    images = GOOD.clone()
    images[1, 0, 0, 0] = value
    return images


# Made when they are asked for: torch warns of both.
def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(GOOD, 1 / 255, 0, torch.quint8)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([GOOD[0], GOOD[1]])


IMAGES = {
    "an array": (GOOD.numpy(), TypeError, r"torch\.Tensor, got ndarray; convert it with torch\.from_numpy"),
    "a picture": (Image.new("RGB", (32, 32)), TypeError, r"got Image; .*dipdefense\.classifiers\.to_tensor\(image\)"),
    "a path": (Path("cat.png"), TypeError, r"got PosixPath; open the file with PIL\.Image\.open"),
    "a list": ([GOOD[0], GOOD[1]], TypeError, r"got list; stack images of one size with torch\.stack"),
    "nothing": (None, TypeError, "images must be a torch.Tensor, got NoneType$"),
    "no batch axis": (GOOD[0], ValueError, r"add a batch axis with images\[None\]"),
    "no batch axis, channels last": (torch.rand(32, 40, 3), ValueError, r"images\.permute\(2, 0, 1\)\[None\]"),
    "channels last": (torch.rand(2, 64, 48, 3), ValueError, r"\(batch, height, width, .*images\.permute\(0, 3, 1, 2\)"),
    "rank 2": (GOOD[0, 0], ValueError, r"\(batch, channels, height, width\), got \(32, 32\)"),
    "uint8": ((GOOD * 255).byte(), TypeError, "divide uint8 images by 255"),
    "uint16": ((GOOD * 65535).to(torch.uint16), TypeError, r"images\.float\(\) / 65535"),
    "int64": (GOOD.long(), TypeError, "floating point"),
    "bool": (GOOD > 0.5, TypeError, r"images must be floating point in \[0, 1\], got torch.bool"),
    "complex": (GOOD.to(torch.complex64), TypeError, r"images must be floating point in \[0, 1\], got torch.complex64"),
    "float8": (GOOD.to(torch.float8_e4m3fn), TypeError, r"got torch.float8_e4m3fn; use images\.float\(\)"),
    "quantised": (quantised, TypeError, r"torch.quint8; use images\.dequantize"),
    "sparse": (GOOD.to_sparse(), TypeError, r"images must be a dense tensor, .*use images\.to_dense\(\)"),
    "nested": (nested, TypeError, "images must be a dense tensor, got a nested"),
    "meta": (GOOD.to("meta"), TypeError, "images must hold values, got a tensor on the device meta"),
    "uint8 values": (GOOD * 255, ValueError, "divide by 255 first"),
    "16 bits by 255": (GOOD * 65535 / 255, ValueError, "divide the original ones by 65535, not by 255"),
    "16 bits": (GOOD * 65535, ValueError, "divide the original ones by 65535"),
    "normalised": ((GOOD - 0.485) / 0.229, ValueError, "already normalised"),
    "from -1 to 1": (GOOD * 2 - 1, ValueError, "already normalised"),
    "slightly above": (
        spoiled(1.01),
        ValueError,
        r"\[0, 1\], got .*; clip them with .* out_of_range=.clip",
    ),
    "slightly below": (
        spoiled(-0.01),
        ValueError,
        r"\[0, 1\], got .*; clip them with .* out_of_range=.clip",
    ),
    "one lost pixel": (spoiled(1e9), ValueError, r"\[0, 1\], got values from .*; clip them with"),
    "NaN": (spoiled(float("nan")), ValueError, r"NaN or infinity is in the images at \[1\]"),
    "infinity": (spoiled(float("inf")), ValueError, r"NaN or infinity is in the images at \[1\]"),
    "too small": (torch.rand(1, 3, 31, 40), ValueError, "at least 32 pixels"),
    "no channels": (torch.rand(1, 0, 32, 32), ValueError, "at least one channel"),
    "no pixels": (torch.rand(1, 3, 0, 32), ValueError, "images must have at least one channel and one pixel"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("images", "error", "message"), IMAGES.values(), ids=IMAGES)
def test_bad_images_raise_before_any_work(images, error, message, monkeypatch) -> None:
    images = images() if callable(images) else images
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


@pytest.mark.parametrize("kind", ["sparse", "meta", "bool", "no pixels", "channels last"])
def test_attacks_and_other_defences_refuse_the_same(kind: str) -> None:
    images, error, message = IMAGES[kind]
    with pytest.raises(error, match=message):
        check_images(images)


BUDGETS = {
    "none": ((), ValueError, "budgets must name at least one"),
    "one number": (1, TypeError, r"budgets must be a sequence of iteration counts such as \(500, 750, 1000\), got 1"),
    "a NumPy number": (np.array(3), TypeError, "budgets must be a sequence"),
    "text": ("500", TypeError, "budgets must be a sequence"),
    "nothing": (None, TypeError, "budgets must be a sequence"),
    "zero": ((0, 5), ValueError, "budgets must be an integer of at least 1"),
    "a fraction": ((2.5,), TypeError, "budgets must be an integer"),
    "a boolean": ((True,), TypeError, "budgets must be an integer"),
    "a tensor's boolean": (torch.tensor([True]), TypeError, "budgets must be an integer"),
    "falling": ((5, 3), ValueError, "budgets must ascend"),
    "twice": ((3, 3), ValueError, "budgets must ascend"),
    "above iters": ((5, 11), ValueError, "budgets must not exceed iters=10"),
    "absurd": ((5, 10**30), ValueError, "budgets must be an integer of at least 1 and at most 1,000,000"),
    "endless": (itertools.count(1), ValueError, "at most 1,000,000 of them, got more"),
    "too many to count": (range(1, 10**30), ValueError, "at most 1,000,000 of them, got more"),
}


@pytest.mark.parametrize(("budgets", "error", "message"), BUDGETS.values(), ids=BUDGETS)
def test_bad_budgets_raise_before_any_work(budgets, error, message: str, monkeypatch) -> None:
    monkeypatch.setattr("dipdefense.engine.fitting.SkipNets", None)  # any work would raise something else
    with pytest.raises(error, match=message):
        DIPPurifier(iters=10).reconstruct(GOOD, budgets=budgets)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, iter], ids=["list", "array", "tensor", "iterator"])
def test_integers_of_any_library_are_accepted(make, tiny: DIPConfig) -> None:
    expected = reconstruct(GOOD, budgets=(1, 2), config=tiny, seed=(3, 4)).images
    run = reconstruct(GOOD, budgets=make([1, 2]), config=tiny, seed=make([3, 4]))
    assert run.budgets == (1, 2)
    assert torch.equal(run.images, expected)
    config = DIPConfig(**{name: np.int64(getattr(tiny, name)) for name in ("scales", "channels")})
    assert (type(config.scales), config.channels) == (int, tiny.channels)
    purifier = DIPPurifier(np.int64(2), config=tiny, seed=make([3, 4]), batch_size=np.int32(2))
    assert torch.equal(purifier(GOOD), expected[1])
    assert torch.equal(purifier(GOOD), expected[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"iters": 0}, ValueError, "iters must be an integer of at least 1"),
        ({"iters": 2.0}, TypeError, "iters must be an integer"),
        ({"iters": 10**30}, ValueError, "iters must be an integer of at least 1 and at most 1,000,000"),
        ({"iters": 10**5000}, ValueError, "iters must be .* got a value of type int"),
        ({"batch_size": 0}, ValueError, 'batch_size must be "auto" or an integer of at least 1, got 0'),
        ({"batch_size": "all"}, TypeError, "batch_size must be"),
        ({"batch_size": True}, TypeError, "batch_size must be"),
        ({"config": "paper"}, TypeError, "config must be a DIPConfig"),
        ({"gradient": "exact"}, ValueError, 'gradient must be "straight-through" or "none"'),
        ({"gradient": np.zeros(2)}, ValueError, "gradient must be"),
        ({"out_of_range": "clamp"}, ValueError, 'out_of_range must be "raise" or "clip"'),
        ({"precision": "fp16"}, ValueError, 'precision must be "auto", "fp32" or "bf16"'),
        ({"progress": "yes"}, TypeError, "progress must be True or False"),
        ({"seed": -1}, ValueError, r"seed must be an integer in \[0, 2\*\*63\)"),
        ({"seed": 2**63}, ValueError, r"seed must be an integer in \[0, 2\*\*63\)"),
        ({"seed": 1.5}, TypeError, "seed must be"),
        ({"seed": "12"}, TypeError, "seed must be"),
        ({"seed": [1, "2"]}, TypeError, "one per image"),
        ({"seed": itertools.count()}, ValueError, "seed must be"),
    ],
    ids=shown,
)
def test_bad_arguments_raise_at_construction(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        DIPPurifier(**arguments)


def test_what_is_called_after_an_iteration_must_be_callable(tiny: DIPConfig) -> None:
    with pytest.raises(TypeError, match="on_iteration must be a function of no arguments, got 3"):
        reconstruct(GOOD, budgets=(1,), config=tiny, on_iteration=3)
    with pytest.raises(TypeError, match="on_iteration must be a function of one number, got 3"):
        DIPPurifier(1, config=tiny).reconstruct(GOOD, budgets=(1,), on_iteration=3)


def test_a_wrong_number_of_seeds() -> None:
    with pytest.raises(ValueError, match="3 seeds for 2 images"):
        DIPPurifier(iters=1, seed=[1, 2, 3])(GOOD)


CONFIGURATIONS = {
    "scales": [(0, ValueError), (2**63, ValueError), (17, ValueError), ("3", TypeError), (True, TypeError)],
    "channels": [(0, ValueError), (8.0, TypeError), (10**9, ValueError)],
    "skip_channels": [(-1, ValueError), (None, TypeError), (10**9, ValueError)],
    "input_channels": [(0, ValueError), (10**9, ValueError)],
    "input_scale": [(0.0, ValueError), (None, TypeError), (1e300, ValueError)],
    "noise_std": [(-0.1, ValueError), ("0", TypeError), (10**400, ValueError)],
    "learning_rate": [(float("nan"), ValueError), ([0.1], TypeError)],
    "adam_eps": [(float("inf"), ValueError), (1j, TypeError)],
    "norm_eps": [("1", TypeError), (True, TypeError)],
    "leaky_slope": [(1.5, ValueError), (None, TypeError)],
    "betas": [
        ((0.9, 1.0), ValueError),
        (0.9, TypeError),
        ((0.9,), ValueError),
        ("ab", TypeError),
        ((0, "1"), TypeError),
    ],
    "kernel_size": [(4, ValueError), (7, ValueError), ("3", TypeError), (3.0, TypeError)],
    "downsampling": [("lanczos", ValueError), (None, ValueError)],
    "upsampling": [("bicubic", ValueError)],
    "activation": [("relu", ValueError), (None, ValueError)],
    "pointwise": [(1, TypeError), ("yes", TypeError)],
    "reduction": [(0, ValueError), (65, ValueError), (2.0, TypeError)],
}


@pytest.mark.parametrize(
    ("name", "value", "error"), [(name, *case) for name, cases in CONFIGURATIONS.items() for case in cases],
    ids=shown,
)  # fmt: skip
def test_bad_configurations(name: str, value, error) -> None:
    with pytest.raises(error, match=f"{name} must be"):
        DIPConfig(**{name: value})


def test_a_configuration_of_numpy_numbers_is_the_plain_one() -> None:
    given = {"channels": np.int64(8), "learning_rate": np.float32(0.5), "betas": np.array([0.5, 0.75]), "noise_std": 0}
    changed = {"channels": 8, "learning_rate": 0.5, "betas": [0.5, 0.75], "noise_std": 0.0}
    plain = dataclasses.asdict(DIPConfig()) | changed
    config = DIPConfig(**given)
    assert config == DIPConfig.from_json(plain)
    assert hash(config) == hash(DIPConfig.from_json(plain))
    assert [type(value) for value in (config.channels, config.learning_rate, config.noise_std)] == [int, float, float]


def test_a_stored_configuration_without_variants_is_the_original_networks() -> None:
    stored = DIPConfig(channels=8).to_json()
    assert not {"kernel_size", "downsampling", "upsampling", "activation", "pointwise"} & stored.keys()
    assert DIPConfig.from_json(stored) == DIPConfig(channels=8)
    for changes in ({"kernel_size": 5}, {"downsampling": "max"}, {"activation": "none"}, {"pointwise": False}):
        varied = DIPConfig(**changes)
        assert varied.to_json().items() >= changes.items()
        assert DIPConfig.from_json(varied.to_json()) == DIPConfig.from_json(dataclasses.asdict(varied)) == varied
    del stored["channels"]
    with pytest.raises(ValueError, match="the stored configuration lacks channels"):
        DIPConfig.from_json(stored)
