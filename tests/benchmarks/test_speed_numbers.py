"""Beside the speed benchmark's times: operations, bytes, memory and quality."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "benchmarks"))

from speed import floor
from speed.contenders import contenders, published_loop
from speed.floor import Ceilings, flops, least_bytes
from speed.memory import peak_in_fresh_process
from speed.networks import PlainNet
from speed.quality import compare, psnr
from speed.report import text

from dipdefense import DIPConfig
from dipdefense.engine.network import SkipNets

SETTINGS = {
    "paper": (DIPConfig.paper(), 224, 88.06e9, 43.7e9),
    "architecture 1": (DIPConfig.architecture_1(), 32, 1.768e9, 0.876e9),
    "architecture 2": (DIPConfig.architecture_2(), 32, 0.0367e9, 0.0228e9),
}


@pytest.mark.parametrize(("config", "side", "published", "least"), SETTINGS.values(), ids=SETTINGS)
def test_operations_are_those_that_torch_counts(config: DIPConfig, side: int, published: float, least: float) -> None:
    shape = {"image_channels": 3, "height": side, "width": side}
    with torch.device("meta"):
        plain, noise = PlainNet(config, 3, config.scales), torch.empty(1, 32, side, side)
    cpu = torch.device("cpu")
    own = SkipNets(config, image_channels=3, scales=config.scales, generators=[torch.Generator()], device=cpu)
    # As one large image is fitted. Of groups the counter counts the backward pass several times.
    innermost = torch.rand(1, 32, side, side).to(memory_format=torch.channels_last)
    counted = []
    for network, features in ((plain, noise), (own, innermost)):
        with FlopCounterMode(display=False) as counter:
            network(features).sum().backward()
        counted.append(counter.get_total_flops())
    assert flops(config, **shape, rewritten=False) == counted[0] == pytest.approx(published, rel=1e-3)
    assert flops(config, **shape, rewritten=True) == pytest.approx(least, rel=2e-3)
    # The library's network: the fewest, and what fixed filters and borders take; or, of small maps, dense matrices.
    assert least < counted[1] < least * (1.25 if config.channels > 16 else 1.45)
    if side == 224:
        assert counted[1] / counted[0] == pytest.approx(0.52, abs=0.01)


def test_an_odd_size_has_the_operations_that_torch_counts() -> None:
    config = DIPConfig(scales=3, channels=8)
    with torch.device("meta"):
        plain, noise = PlainNet(config, 1, 3), torch.empty(1, 32, 37, 50)
    with FlopCounterMode(display=False) as counter:
        plain(noise).sum().backward()
    assert flops(config, image_channels=1, height=37, width=50, rewritten=False) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "side", "activations"),
    [(DIPConfig.paper(), 224, 286.1e6), (DIPConfig.architecture_1(), 32, 5.746e6)],
    ids=["paper", "architecture 1"],
)
def test_least_bytes_in_bf16(config: DIPConfig, side: int, activations: float) -> None:
    """fp32 Adam with gradients, and a bf16 copy of the weights: 38 bytes a parameter."""
    moved = least_bytes(config, image_channels=3, height=side, width=side, operand_bytes=2)
    parameters = config.parameter_count(image_channels=3, scales=config.scales)
    assert moved - 38 * parameters == pytest.approx(activations, rel=1e-3)
    twice = least_bytes(config, image_channels=3, height=side, width=side, operand_bytes=4)
    assert twice - 40 * parameters == 2 * (moved - 38 * parameters)


def test_the_floor_is_the_larger_of_two_times() -> None:
    assert Ceilings(flops=100, bytes=10).least_seconds(200, 50) == 5
    assert Ceilings(flops=100, bytes=10).least_seconds(900, 50) == 9


@pytest.mark.parametrize(("product", "convolution"), [(1.0, 0.1), (0.1, 1.0)])
def test_a_cpus_ceiling_is_the_faster_of_a_product_and_a_convolution(product, convolution, monkeypatch) -> None:
    seconds = iter([product, convolution, 2.0])
    monkeypatch.setattr(floor, "_median_seconds", lambda work, *_: (work(), next(seconds))[1])
    ceilings = floor.measure_ceilings(torch.device("cpu"), torch.float32, side=128, copied=1000)
    assert ceilings.flops == max(2 * 128**3 / product, 2 * 9 * 16**2 * 64**2 / convolution)
    assert ceilings.bytes == 1000


def test_peak_memory_is_of_the_contender_alone() -> None:
    peak = peak_in_fresh_process("grouped", DIPConfig.architecture_1(), batch=4, side=32)
    if peak is None:
        pytest.skip("needs /proc")
    # About 30 MiB an image; the process itself holds several hundred.
    assert 60 < peak < 240


def test_quality_sets_loops_side_by_side(tiny: DIPConfig) -> None:
    config, images = dataclasses.replace(tiny, scales=None), torch.rand(2, 3, 32, 32)
    labels = torch.tensor([0, 2])
    own = contenders(torch.device("cpu"))["dipdefense, fp32"].fit
    loops = {"first": (published_loop, 0), "again": (published_loop, 0), "own": (own, 1)}
    found = compare(images, labels, lambda x: x.mean(dim=(2, 3)), loops, config=config, budgets=(2, 5))
    first, again, other = found["loops"].values()
    assert first["psnr"] == again["psnr"]
    assert again["psnr_difference"] == [0, 0]
    assert again["log_loss_difference"] == 0
    assert again["same_decisions"] == [2, 2]
    assert other["log_loss_difference"] > 0
    torch.manual_seed(1)
    run = own(images, budgets=(2, 5), config=config)
    means = run.images.mean(dim=(3, 4))
    assert other["predictions"] == means.argmax(dim=2).tolist()
    assert other["confidences"][1][1] == pytest.approx(means[1, 1].softmax(dim=0)[2].item())
    expected = torch.tensor(other["psnr"]) - torch.tensor(first["psnr"])
    assert other["psnr_difference"] == pytest.approx(expected.mean(dim=1).tolist())
    same = [
        sum(a == b for a, b in zip(*pair, strict=True))
        for pair in zip(first["predictions"], other["predictions"], strict=True)
    ]
    assert other["same_decisions"] == same
    assert found["labels"] == [0, 2]


def test_quality_is_reported_loop_by_loop_and_may_lose_one_that_is_expendable(tiny: DIPConfig) -> None:
    def dud(*_, **__):
        raise TypeError("out of resources")

    seen = []
    arguments = (torch.rand(1, 3, 32, 32), torch.tensor([0]), lambda x: x.mean(dim=(2, 3)))
    options = {"config": dataclasses.replace(tiny, scales=None), "budgets": (1,)}
    loops = {"first": (published_loop, 0), "dud": (dud, 0), "last": (published_loop, 0)}
    report = lambda found: seen.append(list(found["loops"]))  # noqa: E731
    found = compare(*arguments, loops, expendable={"dud"}, report=report, **options)
    assert seen == [["first"], ["first", "dud", "last"]]
    assert found["loops"]["dud"] == {"failed": "TypeError: out of resources"}
    assert found["loops"]["last"]["same_decisions"] == [1]
    with pytest.raises(TypeError):
        compare(*arguments, loops, **options)


def test_psnr_is_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    images, outputs = torch.rand(2, 3, 8, 9), torch.rand(4, 2, 3, 8, 9)
    expected = metrics.peak_signal_noise_ratio(images[1].numpy(), outputs[2, 1].numpy(), data_range=1)
    assert psnr(outputs, images)[2, 1].item() == pytest.approx(expected, rel=1e-5)


def test_older_records_can_still_be_read() -> None:
    paths = sorted((ROOT / "benchmarks" / "results").glob("speed-*.json"))
    assert paths
    for path in paths:
        assert "checked: published loop, outputs to" in text(json.loads(path.read_text()))
