"""Iterations in kernels: the torch loop's method and invariants.

They run in the interpreter or on a GPU, as in test_kernels. Nothing is captured in the interpreter; test_graphs
has what a graph adds.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator

import pytest
import torch
from conftest import ROOT
from test_reconstruct import CLOSE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.checks import check_request
from dipdefense.engine import graphs, trial
from dipdefense.engine.fitting import surroundings
from dipdefense.engine.memory import bytes_per_image
from dipdefense.engine.network import SkipNets
from dipdefense.modes import without_tf32
from dipdefense.reconstruct import Reconstruction

pytest.importorskip("triton")

from test_kernels import DEVICE, INTERPRETED, runs_kernels
from test_kernels_network import use_large_blocks

from dipdefense.engine.kernels import (
    adam,
    convolution,
    iteration,
    merge,
    noise,
    normalisation,
    upsampled,
    weight_gradient,
)
from dipdefense.engine.kernels.noise import perturb

# The interpreter takes a second an image and iteration, however small the image. The ε matters beside the gradients: by
# a smaller one Adam would undo a wrong factor in them.
TINY = DIPConfig(scales=1, channels=4, skip_channels=2, input_channels=2, adam_eps=1e-3)
SEEDS = [5, 2**40 + 6]


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    """Large blocks, and no overflow checks, which take half the interpreter's time."""
    with pytest.MonkeyPatch.context() as patch:
        speed_up(patch)
        yield


def speed_up(patch: pytest.MonkeyPatch) -> None:
    use_large_blocks(patch)
    if INTERPRETED:
        name = "triton.language.semantic.TritonSemantic.binary_op_sanitize_overflow_impl"
        patch.setattr(name, lambda *_: None, raising=False)


def fit(images: Tensor, budgets: tuple[int, ...], **options) -> Reconstruction:
    options = {"config": TINY, "precision": "fp32", "backend": "triton"} | options
    return reconstruct(images, budgets=budgets, **options)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 4, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.fixture(scope="module")
def run(images: Tensor) -> Reconstruction:
    with pytest.MonkeyPatch.context() as patch:
        speed_up(patch)
        return fit(images, (1, 2, 3), seed=SEEDS)


def torch_loop(images: Tensor, seeds: list[int], config: DIPConfig, iterations: int) -> tuple[Tensor, Tensor]:
    """Losses and outputs of SkipNets and torch's Adam.

    The initial weights and the noise are the backend's.
    """
    count, channels, height, width = images.shape
    generators = [torch.Generator(DEVICE).manual_seed(seed) for seed in seeds]
    scales = config.scales_for(height, width)
    networks = SkipNets(config, image_channels=channels, scales=scales, generators=generators, device=images.device)
    fixed = torch.empty(count, config.input_channels, height, width, device=DEVICE)
    for own, generator in zip(fixed, generators, strict=True):
        own.uniform_(0, config.input_scale, generator=generator)
    fixed = fixed.permute(0, 2, 3, 1).contiguous()
    optimiser = torch.optim.Adam(
        networks.parameters(), lr=config.learning_rate, betas=config.betas, eps=config.adam_eps
    )
    losses, outputs, fresh = [], [], torch.empty_like(fixed)
    # On a GPU torch's convolutions would shorten fp32 operands; the kernels do not.
    with without_tf32():
        for iteration in range(1, iterations + 1):
            number = torch.tensor(iteration, device=DEVICE)
            perturb(fixed, torch.tensor(seeds, device=DEVICE), number, fresh, std=config.noise_std)
            output = networks(fresh.permute(0, 3, 1, 2).contiguous())
            loss = (output - images).square().mean(dim=(1, 2, 3))
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
            losses.append(loss.detach())
            outputs.append(output.detach())
    return torch.stack(losses), torch.stack(outputs)


@runs_kernels
def test_equals_the_torch_loop_on_the_same_noise(images: Tensor, run: Reconstruction) -> None:
    losses, outputs = torch_loop(images, SEEDS, TINY, 3)
    torch.testing.assert_close(run.losses, losses, rtol=1e-4, atol=0)
    torch.testing.assert_close(run.images, outputs, rtol=0, atol=1e-4)
    # The tolerance tells iterations apart.
    assert (losses[1:] / losses[:-1] - 1).abs().min() > 1e-2


@runs_kernels
@pytest.mark.parametrize("operands", ["fp32", "bf16"])
def test_they_pass_their_trial(images: Tensor, operands: str) -> None:
    request = check_request(images[:1], budgets=(1000,), config=TINY, seed=0, precision=operands, backend="triton")
    with surroundings(images.device):
        assert trial.prove(request, "triton") > 0


@runs_kernels
def test_a_snapshot_equals_a_shorter_run_and_no_generator_is_touched(images: Tensor, run: Reconstruction) -> None:
    calls = []
    before = torch.get_rng_state()
    short = fit(images, (2,), seed=SEEDS, on_iteration=lambda: calls.append(len(calls)))
    assert torch.equal(torch.get_rng_state(), before)
    assert calls == [0, 1]
    assert torch.equal(short.images[0], run.images[1])
    assert torch.equal(short.losses, run.losses[:2])
    assert short.status == run.status == ("ok", "ok")


@runs_kernels
def test_one_image_alone_equals_it_in_a_batch(images: Tensor, run: Reconstruction) -> None:
    alone = fit(images[1:], (2,), seed=SEEDS[1])
    torch.testing.assert_close(alone.images[:, 0], run.images[1:2, 1], **CLOSE)
    torch.testing.assert_close(alone.losses[:, 0], run.losses[:2, 1], rtol=1e-4, atol=0)


@runs_kernels
def test_a_diverging_image_changes_no_other(images: Tensor, run: Reconstruction, monkeypatch) -> None:
    start = SkipNets.__init__

    def poisoned(self, *args, **kwargs) -> None:
        start(self, *args, **kwargs)
        with torch.no_grad():
            self.same0_weight[0] = torch.nan

    monkeypatch.setattr(SkipNets, "__init__", poisoned)
    spoiled = fit(images, (2,), seed=SEEDS)
    assert spoiled.status == ("diverged", "ok")
    assert spoiled.images[0, 0].isnan().all()
    assert torch.equal(spoiled.images[0, 1], run.images[1, 1])


@runs_kernels
def test_bf16_operands_stay_near_fp32(images: Tensor, run: Reconstruction) -> None:
    half = fit(images[:1], (2,), seed=SEEDS[:1], precision="bf16")
    assert not torch.equal(half.losses, run.losses[:2, :1])
    torch.testing.assert_close(half.losses, run.losses[:2, :1], rtol=0.05, atol=0)


@runs_kernels
def test_the_purifier_passes_it_on_wherever_it_is_called(images: Tensor, run: Reconstruction) -> None:
    purifier = DIPPurifier(1, config=TINY, seed=SEEDS[:1], precision="fp32", backend="triton")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            purified = purifier(images[:1].half())
    finally:
        torch.set_default_dtype(torch.float32)
    assert purified.dtype == torch.float16
    torch.testing.assert_close(purified.float(), run.images[0, :1], **CLOSE)


@runs_kernels
def test_the_benchmarks_contender_is_checked_like_the_others(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from speed.check import check
    from speed.contenders import untried

    _, contender = untried()
    contender = dataclasses.replace(contender, operands=torch.float32, batched=not INTERPRETED)
    errors = check(contender, TINY, scales=1, device=torch.device(DEVICE), seed=0)
    assert errors.output < 1e-4
    assert errors.gradient < 1e-2


class Live(TorchDispatchMode):
    """The most bytes that tensors take at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.drop, key)
        return result

    def drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class Nothing:
    """A kernel that does nothing, on any grid."""

    def __getitem__(self, grid):
        return lambda *_, **__: None


MEMORY = {
    "paper, 224×224": (DIPConfig.paper(), 224, 8),
    "paper, 224×224, one": (DIPConfig.paper(), 224, 1),
    "paper, 64×64": (DIPConfig.paper(), 64, 2),
    "architecture 1": (DIPConfig.architecture_1(), 32, 16),
    "architecture 2": (DIPConfig.architecture_2(), 32, 16),
}


@pytest.mark.skipif(INTERPRETED, reason="needs no kernels")
@pytest.mark.parametrize(("config", "side", "count"), MEMORY.values(), ids=MEMORY)
@pytest.mark.parametrize("operands", [torch.bfloat16, torch.float32], ids=str)
def test_what_is_reckoned_for_an_image_is_enough(config, side, count, operands, monkeypatch) -> None:
    """Counted on tensors without contents."""
    for module in (adam, convolution, merge, noise, normalisation, upsampled, weight_gradient):
        for name, value in vars(module).copy().items():
            if type(value).__name__ == "JITFunction":
                monkeypatch.setattr(module, name, Nothing())
    with Live() as live, torch.device("meta"):
        scales = config.scales_for(side, side)
        networks = SkipNets(
            config, image_channels=3, scales=scales, generators=[None] * count, device=torch.device("meta")
        )
        fixed_noise, pictures = (torch.empty(count, c, side, side) for c in (config.input_channels, 3))
        step = iteration.Iteration(
            dict(networks.named_parameters()), fixed_noise, pictures, [0] * count, config=config, scales=scales,
            operands=operands, iterations=2, outputs=torch.empty_like(pictures), losses=torch.empty(count),
        )  # fmt: skip
        step()
        step()
    reckoned = count * bytes_per_image(config, 3, side, side, operands, backend="triton")
    assert 0.4 * reckoned < live.peak < reckoned


@pytest.fixture
def pictures() -> Tensor:
    """Smooth ones, with a little noise."""
    coarse = torch.rand(3, 3, 6, 7, device="cuda")
    smooth = torch.nn.functional.interpolate(coarse, size=(64, 70), mode="bicubic")
    return (smooth + 0.02 * torch.randn_like(smooth)).clamp(0, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_fit_equals_one_that_is_not(precision: str, pictures: Tensor, monkeypatch) -> None:
    config = DIPConfig(channels=32)
    options = {"config": config, "precision": precision, "seed": [1, 2, 3]}
    captured = fit(pictures, (1, 2, 3, 20), **options)
    with torch.cuda.stream(torch.cuda.Stream()):
        elsewhere = fit(pictures, (3, 20), **options)
    short = fit(pictures, (3,), **options)
    monkeypatch.setattr(graphs, "Replayed", lambda step, device: step)
    plain = fit(pictures, (1, 2, 3, 20), **options)
    assert captured.losses[-1].mean() < captured.losses[0].mean()
    assert torch.equal(captured.losses, plain.losses)
    assert torch.equal(captured.images, plain.images)
    assert torch.equal(captured.images[2:], elsewhere.images)
    assert torch.equal(captured.images[2], short.images[0])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_they_pass_their_trial_at_the_papers_size(precision: str, pictures: Tensor) -> None:
    config = DIPConfig.paper()
    request = check_request(pictures, budgets=(9,), config=config, seed=0, precision=precision, backend="triton")
    with surroundings(pictures.device):
        assert trial.prove(request, "triton") > 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_loss_curve_is_the_torch_backends(precision: str, pictures: Tensor) -> None:
    """As far as another seed's is, for the fresh noise is another."""
    options = {"config": DIPConfig.compact(), "precision": precision}
    own = fit(pictures, (300,), seed=1, **options)
    same, other = (reconstruct(pictures, budgets=(300,), seed=seed, **options) for seed in (1, 2))
    curves = [torch.stack([p.log().mean(dim=0) for p in run.losses.split(30)]) for run in (own, same, other)]
    apart, yardstick = ((curve - curves[1]).abs().mean() for curve in (curves[0], curves[2]))
    assert own.status == ("ok",) * 3
    assert apart < 2 * yardstick + 0.05


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "side", "count"), MEMORY.values(), ids=MEMORY)
def test_its_peak_is_within_what_is_reckoned(config, side, count) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fit(torch.rand(count, 3, side, side, device="cuda"), (4,), config=config, precision="bf16", seed=0)
    reckoned = count * bytes_per_image(config, 3, side, side, torch.bfloat16, backend="triton")
    # Beside the images' own: cuBLAS's workspaces and the weight gradients' splits, of which few images have many.
    assert torch.cuda.max_memory_allocated() - before < reckoned + 2**27
