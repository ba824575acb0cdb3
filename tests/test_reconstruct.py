"""The loop: as published, independent between images, governed by seeds alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reference import reference_fit, reference_like

from dipdefense import DIPConfig, reconstruct
from dipdefense.engine.network import SkipNets

# Two batch shapes run different kernels, whose roundings differ. Some gradients are zero in exact arithmetic at the
# start (a normalisation's scale matters to the next one only once its shift has moved), and Adam makes a full step of
# their rounding. Over 120 images the largest difference was 7e-5 after two iterations and 2e-3 after four; another
# seed's is 0.2.
CLOSE = {"rtol": 0, "atol": 1e-2}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 37)


OTHER_NUMBERS = {"learning_rate": 0.02, "betas": (0.5, 0.8), "adam_eps": 1e-3, "norm_eps": 1e-2, "leaky_slope": 0.3}


@pytest.mark.parametrize("changes", [{}, OTHER_NUMBERS], ids=["default", "other numbers"])
def test_equals_the_published_loop(tiny: DIPConfig, images: torch.Tensor, changes) -> None:
    """The same initial weights and noise give the same first ten outputs and losses."""
    tiny = dataclasses.replace(tiny, **changes)
    run = reconstruct(images, budgets=range(1, 11), config=tiny, seed=[5, 6, 7, 8])
    for index, image in enumerate(images):
        generator = torch.Generator().manual_seed(5 + index)
        start = SkipNets(tiny, image_channels=3, scales=2, generators=[generator], device=torch.device("cpu"))
        noise = torch.empty(4, 32, 37).uniform_(0, 0.1, generator=generator)
        fresh = [torch.empty_like(noise).normal_(0, 1 / 30, generator=generator) for _ in range(10)]
        net = reference_like(start, 0, tiny, 3)
        plain = reference_fit(image, iterations=10, config=tiny, net=net, noise=noise, fresh=fresh)
        torch.testing.assert_close(run.losses[:, index], torch.tensor(plain.losses), rtol=0.02, atol=0)
        torch.testing.assert_close(run.images[:, index], torch.stack(plain.outputs), rtol=0, atol=0.03)
        torch.testing.assert_close(run.images[:4, index], torch.stack(plain.outputs[:4]), **CLOSE)


def test_losses_are_the_outputs_errors(tiny: DIPConfig, images: torch.Tensor) -> None:
    run = reconstruct(images, budgets=(2, 5), config=tiny, seed=0)
    for position, budget in enumerate(run.budgets):
        error = (run.images[position] - images).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(run.losses[budget - 1], error)
    assert run.losses.shape == (5, 4)
    assert run.losses[-1].mean() < run.losses[0].mean()


BATCHES = {
    "architecture 1, 32×32": (DIPConfig.architecture_1(), 32),
    "architecture 2, 32×32": (DIPConfig.architecture_2(), 32),
    "architecture 2, 64×64": (DIPConfig.architecture_2(), 64),
    "architecture 2, 96×96": (DIPConfig.architecture_2(), 96),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("config", "side"), BATCHES.values(), ids=BATCHES)
def test_one_image_alone_equals_it_in_any_batch(config: DIPConfig, side: int, precision: str) -> None:
    images, seeds = torch.rand(6, 3, side, side), [11, 12, 13, 14, 15, 16]
    settings = {"budgets": (8,), "config": config, "precision": precision}
    together = reconstruct(images, seed=seeds, **settings).images
    order = [2, 0, 5, 3, 1, 4]
    shuffled = reconstruct(images[order], seed=[seeds[i] for i in order], **settings)
    torch.testing.assert_close(shuffled.images, together[:, order], rtol=0, atol=1e-6)
    for chunk in (slice(1, 2), slice(1, 3), slice(2, 5)):
        part = reconstruct(images[chunk], seed=seeds[chunk], **settings)
        torch.testing.assert_close(part.images, together[:, chunk], rtol=0, atol=1e-6)
    # The tolerance tells seeds apart.
    other = reconstruct(images[:1], seed=99, **settings)
    assert (other.images[:, 0] - together[:, 0]).abs().max() > 1e-2


def test_the_losses_are_summed_not_averaged(tiny: DIPConfig, images: torch.Tensor) -> None:
    """With an ε that matters, averaged gradients would move the networks less."""
    config = dataclasses.replace(tiny, adam_eps=1e-3)
    together = reconstruct(images, budgets=(4,), config=config, seed=1)
    alone = reconstruct(images[:1], budgets=(4,), config=config, seed=1)
    torch.testing.assert_close(alone.images[:, 0], together.images[:, 0], **CLOSE)


def test_an_integer_seed_depends_on_no_position(tiny: DIPConfig, images: torch.Tensor) -> None:
    same = images[:1].expand(3, -1, -1, -1)
    run = reconstruct(same, budgets=(3,), config=tiny, seed=4)
    torch.testing.assert_close(run.images[:, 0], run.images[:, 2], **CLOSE)


def test_a_snapshot_equals_a_shorter_run(tiny: DIPConfig, images: torch.Tensor) -> None:
    long = reconstruct(images, budgets=(3, 6, 8), config=tiny, seed=1)
    for position, budget in enumerate((3, 6, 8)):
        short = reconstruct(images, budgets=(budget,), config=tiny, seed=1)
        assert torch.equal(short.images[0], long.images[position])
        assert torch.equal(short.losses, long.losses[:budget])


def test_a_diverging_or_black_image_changes_no_other(tiny: DIPConfig, images: torch.Tensor, monkeypatch) -> None:
    healthy = reconstruct(images, budgets=(2, 4), config=tiny, seed=3)
    start = SkipNets.__init__

    def poisoned(self, *args, **kwargs) -> None:
        start(self, *args, **kwargs)
        with torch.no_grad():
            self.same0_weight[1] = torch.nan

    monkeypatch.setattr(SkipNets, "__init__", poisoned)
    images = images.clone()
    images[2] = 0
    run = reconstruct(images, budgets=(2, 4), config=tiny, seed=3)
    assert run.status == ("ok", "diverged", "ok", "ok")
    assert run.images[:, 1].isnan().all()
    assert torch.equal(run.images[:, [0, 3]], healthy.images[:, [0, 3]])
    assert run.images[:, 2].isfinite().all()


def test_a_seed_fixes_everything_and_touches_no_global_generator(tiny: DIPConfig, images: torch.Tensor) -> None:
    before = torch.get_rng_state()
    first = reconstruct(images, budgets=(3,), config=tiny, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    second = reconstruct(images, budgets=(3,), config=tiny, seed=7)
    assert torch.equal(first.images, second.images)


def test_no_seed_differs_at_every_call_and_follows_the_default_generator(tiny: DIPConfig, images: torch.Tensor) -> None:
    torch.manual_seed(1)
    first, second = (reconstruct(images, budgets=(2,), config=tiny).images for _ in range(2))
    torch.manual_seed(1)
    again = reconstruct(images, budgets=(2,), config=tiny).images
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    same = reconstruct(images[:1].expand(2, -1, -1, -1), budgets=(2,), config=tiny).images
    assert not torch.allclose(same[:, 0], same[:, 1])


def test_noise_is_the_papers(images: torch.Tensor, monkeypatch) -> None:
    """U(0, 0.1) that stays, plus N(0, 1/30) afresh (appendix A.3, Tables 3 and 4)."""
    config = DIPConfig(scales=1, channels=2, skip_channels=0)
    seen = []
    forward = SkipNets.forward
    monkeypatch.setattr(SkipNets, "forward", lambda self, z: (seen.append(z.clone()), forward(self, z))[1])
    reconstruct(images, budgets=(40,), config=config, seed=0)
    noise = torch.stack(seen)
    assert noise.shape == (40, 4, 32, 32, 37)
    assert noise.std(dim=0).mean() == pytest.approx(1 / 30, rel=0.02)
    fixed = noise.mean(dim=0)
    assert fixed.mean() == pytest.approx(0.05, rel=0.02)
    assert fixed.std() == pytest.approx((0.1**2 / 12 + (1 / 30) ** 2 / 40) ** 0.5, rel=0.02)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 64), (65, 70)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sizes_and_channels(size: tuple[int, int], channels: int) -> None:
    config = DIPConfig(channels=4, skip_channels=2, input_channels=3)
    run = reconstruct(torch.rand(2, channels, *size), budgets=(1, 2), config=config, seed=0)
    assert run.images.shape == (2, 2, channels, *size)
    assert run.images.isfinite().all()
    assert run.images.min() >= 0
    assert run.images.max() <= 1


def test_an_empty_batch_is_an_empty_run(tiny: DIPConfig) -> None:
    run = reconstruct(torch.rand(0, 3, 32, 32), budgets=(1, 2), config=tiny)
    assert run.images.shape == (2, 0, 3, 32, 32)
    assert run.losses.shape == (2, 0)
    assert run.final_losses.shape == (0,)
    assert run.at(1).losses.shape == (1, 0)
    assert run.status == ()


def test_the_final_losses_are_the_last_budgets(tiny: DIPConfig, images: torch.Tensor) -> None:
    run = reconstruct(images, budgets=(1, 3), config=tiny, seed=0)
    assert torch.equal(run.final_losses, run.losses[2])


def test_a_budget_that_was_not_recorded_is_refused(tiny: DIPConfig, images: torch.Tensor) -> None:
    run = reconstruct(images, budgets=(1, 3), config=tiny, seed=0)
    with pytest.raises(ValueError, match=r"budget must be one of \(1, 3\), got 2"):
        run.at(2)


def test_fresh_seeds_are_the_cpus_whatever_the_default_device(tiny: DIPConfig, images: torch.Tensor) -> None:
    torch.manual_seed(1)
    expected = reconstruct(images, budgets=(1,), config=tiny).images
    torch.manual_seed(1)
    with torch.device("meta"):
        assert torch.equal(reconstruct(images, budgets=(1,), config=tiny).images, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_dtype_is_the_inputs(tiny: DIPConfig, images: torch.Tensor, dtype: torch.dtype) -> None:
    run = reconstruct(images.to(dtype), budgets=(2,), config=tiny, seed=0)
    assert run.images.dtype == dtype
    expected = reconstruct(images.to(dtype).float(), budgets=(2,), config=tiny, seed=0).images
    assert torch.equal(run.images, expected.to(dtype))


def test_losses_are_fp32_whatever_the_default_dtype(tiny: DIPConfig, images: torch.Tensor) -> None:
    expected = reconstruct(images, budgets=(2,), config=tiny, seed=0).losses
    torch.set_default_dtype(torch.float64)
    try:
        losses = reconstruct(images, budgets=(2,), config=tiny, seed=0).losses
    finally:
        torch.set_default_dtype(torch.float32)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, expected)


def test_a_late_divergence_keeps_the_outputs_before_it(tiny: DIPConfig, images: torch.Tensor, monkeypatch) -> None:
    calls = []
    forward = SkipNets.forward

    def spoiled(self, noise: torch.Tensor) -> torch.Tensor:
        calls.append(noise)
        output = forward(self, noise)
        return output if len(calls) < 3 else output * torch.tensor([1, torch.nan, 1, 1]).view(4, 1, 1, 1)

    monkeypatch.setattr(SkipNets, "forward", spoiled)
    run = reconstruct(images, budgets=(2, 3), config=tiny, seed=3)
    assert run.status == ("ok", "diverged", "ok", "ok")
    assert run.images[0].isfinite().all()
    assert run.images[1, 1].isnan().all()
    assert run.images[1, 0].isfinite().all()


def test_bf16_operands_stay_near_fp32(tiny: DIPConfig, images: torch.Tensor) -> None:
    full = reconstruct(images, budgets=(5,), config=tiny, seed=0, precision="fp32")
    half = reconstruct(images, budgets=(5,), config=tiny, seed=0, precision="bf16")
    assert half.losses.dtype == torch.float32
    assert not torch.equal(half.losses, full.losses)
    torch.testing.assert_close(half.losses, full.losses, rtol=0.05, atol=0)
