"""backend="native": the torch loop's method and invariants, with its own noise."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from dipdefense import DIPConfig, DIPPurifier, processor, reconstruct
from dipdefense.checks import Request, check_backend, explain
from dipdefense.engine import fitting as fitting_module
from dipdefense.engine import trial
from dipdefense.engine.fitting import BetweenConvolutions, Fitting, surroundings
from dipdefense.evaluation.defences import deep_image_prior
from dipdefense.native.iteration import Iteration
from dipdefense.native.library import Kernels

# The kernels do whole iterations, in bf16 on some processors only and not of networks with many skip channels, or else
# what lies between torch's convolutions. There one large image has its channels innermost; without skip branches there
# is no narrow convolution.
CASES = {
    "small images": ((3, 3, 35, 33), {}),
    "one small image": ((1, 1, 32, 32), {}),
    "pairs of vectors": ((2, 3, 37, 64), {"channels": 64, "skip_channels": 16, "input_channels": 1}),
    "single vectors": ((2, 2, 32, 34), {"channels": 48, "scales": 4}),
    "many skip channels": ((2, 3, 32, 33), {"skip_channels": 17}),
    "one large image": ((1, 3, 161, 165), {"channels": 20}),
    "no skip branches": ((1, 4, 161, 160), {"skip_channels": 0}),
}
PAIRS = ("avx512_bf16",)


@pytest.mark.parametrize(
    ("operands", "features"),
    [(torch.float32, ()), (torch.bfloat16, ()), (torch.bfloat16, PAIRS)],
    ids=["fp32", "bf16 by torch's convolutions", "bf16"],
)
@pytest.mark.parametrize(("shape", "changes"), CASES.values(), ids=CASES)
def test_it_does_what_torch_does(
    native: Kernels, tiny: DIPConfig, shape, changes, operands, features, monkeypatch
) -> None:
    monkeypatch.setattr(processor, "features", lambda: frozenset(features))
    config = dataclasses.replace(tiny, **changes)
    request = Request(torch.rand(shape), (8,), config, tuple(range(shape[0])), operands, "native")
    with surroundings(torch.device("cpu")):
        trial.prove(request, "native")


@pytest.mark.parametrize("changes", [{"betas": (0.5, 0.999)}, {"betas": (0.9, 0.8)}, {"adam_eps": 1e-2}], ids=str)
def test_adams_numbers_count(native: Kernels, tiny: DIPConfig, changes) -> None:
    # Without fresh noise, which comes of another generator.
    images, usual = torch.rand(2, 3, 32, 36), dataclasses.replace(tiny, adam_eps=1e-3, norm_eps=0.1, noise_std=0)
    asked = dataclasses.replace(usual, **changes)
    plain, own, other = (
        reconstruct(images, budgets=(8,), config=config, seed=0, backend=backend).images
        for config, backend in ((asked, "torch"), (asked, "native"), (usual, "native"))
    )
    torch.testing.assert_close(own, plain, rtol=0, atol=1e-3)
    assert (other - plain).abs().max() > 5e-3


class Wrong(Iteration):
    def __call__(self) -> None:
        super().__call__()
        self._outputs += 0.01


def test_that_comparison_can_fail(native: Kernels, tiny: DIPConfig, monkeypatch) -> None:
    monkeypatch.setattr(fitting_module, "Iteration", Wrong)
    request = Request(torch.rand(1, 3, 32, 32), (8,), tiny, (0,), torch.float32, "native")
    with surroundings(torch.device("cpu")), pytest.raises(trial.Mismatch):
        trial.prove(request, "native")


@pytest.mark.parametrize(
    ("operands", "skips", "features", "kind"),
    [
        (torch.float32, 16, (), Iteration),
        (torch.float32, 17, (), BetweenConvolutions),
        (torch.bfloat16, 16, PAIRS, Iteration),
        (torch.bfloat16, 17, PAIRS, BetweenConvolutions),
        (torch.bfloat16, 4, (), BetweenConvolutions),
        (torch.bfloat16, 4, (*PAIRS, "amx_bf16"), BetweenConvolutions),
    ],
)
def test_whole_iterations_in_bf16_need_a_processor_that_multiplies_pairs(
    native: Kernels, tiny: DIPConfig, operands, skips, features, kind, monkeypatch
) -> None:
    monkeypatch.setattr(processor, "features", lambda: frozenset(features))
    config = dataclasses.replace(tiny, skip_channels=skips)
    request = Request(torch.rand(1, 3, 32, 32), (8,), config, (0,), operands, "native")
    assert type(Fitting(request, "native").iterate) is kind


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_number_of_threads_changes_no_bit(native: Kernels, count: int, precision, monkeypatch) -> None:
    monkeypatch.setattr(processor, "features", lambda: frozenset(PAIRS))
    images, config = torch.rand(count, 3, 70, 38), DIPConfig(scales=3, channels=32)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            run = reconstruct(images, budgets=(3,), config=config, seed=0, precision=precision, backend="native")
            runs.append(run)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(runs[0].images, runs[1].images)
    assert torch.equal(runs[0].losses, runs[1].losses)


def test_more_threads_may_come_in_the_middle(native: Kernels, tiny: DIPConfig) -> None:
    before = torch.get_num_threads()
    request = Request(torch.rand(4, 3, 32, 32), (8,), tiny, (0, 1, 2, 3), torch.float32, "native")
    try:
        torch.set_num_threads(1)
        fitting, plain = Fitting(request, "native"), Fitting(request, "native")
        fitting(), plain()
        torch.set_num_threads(4)
        fitting()
        torch.set_num_threads(1)
        plain()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(fitting.outputs, plain.outputs)


# 24 channels are whole vectors of eight or four, but not whole blocks of 16.
@pytest.mark.parametrize("channels", [6, 7, 24])
@pytest.mark.parametrize("operands", [torch.float32, torch.bfloat16], ids=str)
def test_a_diverging_image_leaves_the_others_alone(
    native: Kernels, tiny: DIPConfig, channels: int, operands, monkeypatch
) -> None:
    monkeypatch.setattr(processor, "features", lambda: frozenset(PAIRS))
    # The last pair of numbers is at the end of a tensor where the sides and the input channels are odd.
    config = dataclasses.replace(tiny, channels=channels, input_channels=5, skip_channels=3)
    request = Request(torch.rand(3, 3, 33, 35), (8,), config, (0, 1, 2), operands, "native")
    right, spoiled = Fitting(request, "native"), Fitting(request, "native")
    spoiled.target[1] = torch.nan
    for _ in range(5):
        right(), spoiled()
    assert spoiled.losses.isnan().tolist() == [False, True, False]
    assert torch.equal(spoiled.outputs[[0, 2]], right.outputs[[0, 2]])


@pytest.mark.parametrize(("precision", "features"), [("fp32", ()), ("bf16", ()), ("bf16", PAIRS)])
def test_an_image_alone_is_the_same_to_the_bit(native: Kernels, precision, features, monkeypatch) -> None:
    monkeypatch.setattr(processor, "features", lambda: frozenset(features))
    # Of this shape torch's convolutions are so too.
    images = torch.rand(3, 3, 32, 32)
    options = {"budgets": (12,), "config": DIPConfig.architecture_2(), "precision": precision, "backend": "native"}
    together = reconstruct(images, seed=(5, 6, 7), **options)
    for place, seed in enumerate((5, 6, 7)):
        alone = reconstruct(images[place : place + 1], seed=seed, **options)
        assert alone.backend == "native"
        assert torch.equal(alone.images[:, 0], together.images[:, place])


def test_a_budget_is_a_snapshot_and_a_seed_fixes_everything(native: Kernels, tiny: DIPConfig) -> None:
    images = torch.rand(2, 3, 32, 32)
    long = reconstruct(images, budgets=(4, 9), config=tiny, seed=1, backend="native")
    with torch.inference_mode(), torch.autocast("cpu"):
        short = reconstruct(images, budgets=(4,), config=tiny, seed=1, backend="native")
    other = reconstruct(images, budgets=(4,), config=tiny, seed=2, backend="native")
    assert torch.equal(short.images[0], long.images[0])
    assert not torch.equal(short.images, other.images)


@pytest.mark.parametrize("count", [1, 2])
def test_the_images_memory_format_changes_nothing(native: Kernels, tiny: DIPConfig, count: int) -> None:
    images, options = torch.rand(count, 32, 35, 3).permute(0, 3, 1, 2), {"budgets": (3,), "config": tiny, "seed": 1}
    permuted, contiguous = (
        reconstruct(each, backend="native", **options) for each in (images, images.contiguous())
    )  # fmt: skip
    assert torch.equal(permuted.losses, contiguous.losses)
    assert torch.equal(permuted.images, contiguous.images)


def test_it_learns(native: Kernels, tiny: DIPConfig) -> None:
    image = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32).expand(1, 3, -1, -1)
    run = reconstruct(image, budgets=(150,), config=tiny, seed=0, backend="native")
    assert run.losses[-1].item() < run.losses[0].item() / 10


def test_it_is_taken_where_it_is_asked_for_and_records_name_it(native: Kernels, tiny: DIPConfig, monkeypatch) -> None:
    images = torch.rand(1, 3, 32, 32)
    assert DIPPurifier(2, config=tiny).backend_for(images) == "torch"
    assert DIPPurifier(2, config=tiny, backend="native").backend_for(images) == "native"
    assert explain("cpu")["backend"] == (
        'torch: the same on every CPU. "native" would be faster, with fresh noise of its own: the kernels compiled on '
        "this machine do what torch's operators do."
    )
    assert explain("cpu", backend="native")["backend"] == "native: asked for."
    hint = 'but "bf16" is faster for all but small networks (avx512_bf16).'
    for features, backend, hinted in (((), "native", False), (PAIRS, "native", True), (PAIRS, "torch", False)):
        monkeypatch.setattr(processor, "features", functools.partial(frozenset, features))
        assert explain("cpu", backend=backend)["precision"].endswith(hint) == hinted
    made = deep_image_prior((2,), config=tiny, shape=(3, 32, 32), backend="native")
    assert made.settings["backend"] == "native"


def test_it_needs_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"the images on a CPU, got images on cuda; move them there \(images.cpu"):
        check_backend("native", torch.device("cuda"))
