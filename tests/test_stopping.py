"""Stopping rules against plain references, with other images' fits untouched."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.reconstruct import Reconstruction
from dipdefense.stopping import Rule, Trend, Variance, Watch, check_stopping

LAST = 24


class Script(Rule):
    """Ends fits at given iterations and takes the output two iterations before.

    It knows the images by their first pixels.
    """

    def __init__(self, images: torch.Tensor, ends: list[int]) -> None:
        object.__setattr__(self, "warm_up", 0)
        object.__setattr__(self, "patience", 2)
        object.__setattr__(self, "ends", {float(image[0, 0, 0]): end for image, end in zip(images, ends, strict=True)})

    def watch(self, images: torch.Tensor) -> Watch:
        return _Scripted(images, self)


class _Scripted(Watch):
    def __init__(self, images: torch.Tensor, rule: Script) -> None:
        super().__init__(images, rule)
        self._best = torch.tensor([rule.ends[float(image[0, 0, 0])] - 2 for image in images])

    def _scores(self, iteration: int, outputs: torch.Tensor) -> torch.Tensor:
        return (self._best - iteration).abs().double()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 32, 40)


@pytest.fixture
def fixed(tiny: DIPConfig, images: torch.Tensor) -> Reconstruction:
    return reconstruct(images, budgets=range(1, LAST + 1), config=tiny, seed=range(5))


def plain_variance(outputs: np.ndarray, rule: Variance) -> tuple[int, int]:
    """The iteration taken and the last one, for one image's outputs in float64."""
    best, stopped, mean, variance = np.inf, 0, outputs[0], 0.0
    for iteration, output in enumerate(outputs, start=1):
        if iteration > 1:
            deviation = output - mean
            mean = mean + rule.decay * deviation
            variance = (1 - rule.decay) * (variance + rule.decay * np.mean(deviation**2))
        if iteration > rule.warm_up and variance < best:
            best, stopped = variance, iteration
        if stopped and iteration - stopped >= rule.patience:
            return stopped, iteration
    return len(outputs), len(outputs)


def plain_trend(outputs: np.ndarray, image: np.ndarray, rule: Trend) -> tuple[int, int]:
    """Likewise, by Holt's smoothing of the PSNR of the worst whole 32×32-pixel patch."""
    rows, columns = image.shape[1] // 32, image.shape[2] // 32
    psnrs = []
    for output in outputs:
        error = (output - image) ** 2
        patches = [
            error[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32].mean()
            for row in range(rows)
            for column in range(columns)
        ]
        psnrs.append(-10 * np.log10(max(patches)))
    weight, level, slope = rule.smoothing, 0.0, 0.0
    best, stopped = -np.inf, 0
    for iteration, psnr in enumerate(psnrs, start=1):
        if iteration == rule.warm_up:
            level, slope = psnr, (psnr - psnrs[0]) / (iteration - 1)
        elif iteration > rule.warm_up:
            before = level
            level = weight * psnr + (1 - weight) * (level + slope)
            slope = weight * (level - before) + (1 - weight) * slope
            if level > best:
                best, stopped = level, iteration
        if stopped and iteration - stopped >= rule.patience:
            return stopped, iteration
    return len(outputs), len(outputs)


RULES = {
    "variance": Variance(warm_up=3, patience=2),
    "variance, quick": Variance(warm_up=5, patience=3, decay=0.5),
    "trend": Trend(warm_up=2, patience=2, smoothing=0.6),
    "trend, quick": Trend(warm_up=3, patience=1, smoothing=0.9),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("side", [(32, 48), (64, 80)], ids=str)
def test_the_rule_is_the_plain_one(rule: Rule, side: tuple[int, int], tiny: DIPConfig) -> None:
    images = torch.rand(4, 3, *side)
    every = reconstruct(images, budgets=range(1, LAST + 1), config=tiny, seed=range(4))
    run = reconstruct(images, budgets=(LAST,), config=tiny, seed=range(4), stopping=rule)
    for index, image in enumerate(images):
        outputs = every.images[:, index].double().numpy()
        plain = (
            plain_variance(outputs, rule) if isinstance(rule, Variance) else plain_trend(outputs, image.numpy(), rule)
        )
        assert (run.stopped[index], run.iterations[index]) == plain
        assert torch.equal(run.images[0, index], every.images[run.stopped[index] - 1, index])


def test_the_cases_above_stop_early_and_each_image_by_itself(tiny: DIPConfig, images: torch.Tensor) -> None:
    runs = [reconstruct(images, budgets=(LAST,), config=tiny, seed=range(5), stopping=rule) for rule in RULES.values()]
    assert all(min(run.iterations) < LAST for run in runs)
    assert [len(set(run.iterations)) > 1 for run in runs] == [False, True, True, True]


ENDS = {
    "one": [7, 99, 99, 99, 99],
    "several": [9, 5, 99, 5, 12],
    "all": [9, 5, 6, 5, 12],
    "all but one": [4, 4, 4, 99, 4],
}


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("channels", [6, 16], ids=["padded for Adam", "whole vectors"])
def test_no_other_image_changes_by_a_bit(ends: list[int], channels: int, tiny: DIPConfig, images: torch.Tensor) -> None:
    """Whoever stops, the others' outputs and losses are those without stopping."""
    config = dataclasses.replace(tiny, channels=channels)
    settings = {"config": config, "seed": range(5)}
    fixed = reconstruct(images, budgets=range(1, LAST + 1), **settings)
    run = reconstruct(images, budgets=range(1, LAST + 1), stopping=Script(images, ends), **settings)
    assert run.iterations == tuple(min(end, LAST) for end in ends)
    for index, end in enumerate(run.iterations):
        stopped = end if end == LAST else end - 2
        assert run.stopped[index] == stopped
        before = end if end == LAST else end - 1
        assert torch.equal(run.images[:before, index], fixed.images[:before, index])
        assert (run.images[before:, index] == fixed.images[stopped - 1, index]).all()
        assert torch.equal(run.losses[:end, index], fixed.losses[:end, index])
        assert run.losses[end:, index].isnan().all()
    assert run.status == ("ok",) * 5


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_image_stops_in_a_batch_as_it_does_alone(rule: Rule, tiny: DIPConfig, images: torch.Tensor) -> None:
    together = reconstruct(images, budgets=(10, LAST), config=tiny, seed=range(5), stopping=rule)
    for index in range(5):
        alone = reconstruct(images[index : index + 1], budgets=(10, LAST), config=tiny, seed=[index], stopping=rule)
        assert alone.stopped[0] == together.stopped[index]
        assert alone.iterations[0] == together.iterations[index]
        assert torch.equal(alone.images[:, 0], together.images[:, index])


def test_the_last_large_image_of_a_batch_keeps_its_layout() -> None:
    """Alone from the start it would have channels innermost, and other roundings."""
    config, images = DIPConfig(scales=2, channels=16, input_channels=8), torch.rand(2, 3, 160, 160)
    fixed = reconstruct(images, budgets=(6,), config=config, seed=[0, 1])
    run = reconstruct(images, budgets=(6,), config=config, seed=[0, 1], stopping=Script(images, [3, 99]))
    assert torch.equal(run.images[:, 1], fixed.images[:, 1])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_snapshot_is_a_shorter_run(rule: Rule, tiny: DIPConfig, images: torch.Tensor) -> None:
    budgets = (5, 9, 14, LAST)
    run = reconstruct(images, budgets=budgets, config=tiny, seed=range(5), stopping=rule)
    for budget in budgets:
        short = reconstruct(images, budgets=(budget,), config=tiny, seed=range(5), stopping=rule)
        taken = run.at(budget)
        assert torch.equal(short.images, taken.images)
        assert torch.equal(short.losses.nan_to_num(-1), taken.losses.nan_to_num(-1))
        assert (short.stopped, short.iterations, short.status) == (taken.stopped, taken.iterations, taken.status)


@pytest.mark.parametrize("rule", [RULES["variance"], RULES["trend"]], ids=["variance", "trend"])
def test_the_default_device_changes_nothing(rule: Rule, tiny: DIPConfig, images: torch.Tensor) -> None:
    expected = reconstruct(images, budgets=(LAST,), config=tiny, seed=0, stopping=rule)
    with torch.device("meta"):
        run = reconstruct(images, budgets=(LAST,), config=tiny, seed=0, stopping=rule)
    assert (run.stopped, run.iterations) == (expected.stopped, expected.iterations)
    assert torch.equal(run.images, expected.images)


def test_the_final_losses_are_those_of_the_outputs_that_were_taken(tiny: DIPConfig, images: torch.Tensor) -> None:
    run = reconstruct(images, budgets=(LAST,), config=tiny, seed=range(5), stopping=RULES["variance"])
    torch.testing.assert_close(run.final_losses, (run.images[0] - images).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("rule", [Variance(patience=LAST), Trend(patience=LAST)], ids=["variance", "trend"])
def test_a_rule_that_never_stops_is_the_fixed_budget(
    rule: Rule, tiny: DIPConfig, images: torch.Tensor, fixed: Reconstruction
) -> None:
    run = reconstruct(images, budgets=range(1, LAST + 1), config=tiny, seed=range(5), stopping=rule)
    assert torch.equal(run.images, fixed.images)
    assert torch.equal(run.losses, fixed.losses)
    assert run.stopped == run.iterations == fixed.stopped == fixed.iterations == (LAST,) * 5


def test_a_network_that_diverges_is_not_stopped(tiny: DIPConfig, images: torch.Tensor, monkeypatch) -> None:
    from dipdefense.engine.network import SkipNets

    start = SkipNets.__init__

    def poisoned(self, *args, **kwargs) -> None:
        start(self, *args, **kwargs)
        with torch.no_grad():
            self.same0_weight[1] = torch.nan

    monkeypatch.setattr(SkipNets, "__init__", poisoned)
    run = reconstruct(images, budgets=(LAST,), config=tiny, seed=range(5), stopping=RULES["variance"])
    assert run.status == ("ok", "diverged", "ok", "ok", "ok")
    assert run.iterations[1] == LAST
    assert run.images[0, 1].isnan().all()


def test_purifier_and_chunks(tiny: DIPConfig, images: torch.Tensor) -> None:
    rule = RULES["variance"]
    whole = reconstruct(images, budgets=(LAST,), config=tiny, seed=range(5), stopping=rule)
    purifier = DIPPurifier(LAST, config=tiny, seed=range(5), batch_size=2, stopping=rule)
    run = purifier.reconstruct(images, budgets=(LAST,))
    assert (run.stopped, run.iterations) == (whole.stopped, whole.iterations)
    assert torch.equal(run.images, whole.images)
    assert torch.equal(copy.deepcopy(purifier)(images), whole.images[0])
    assert "stopping=Variance(" in repr(purifier)
    assert "stopping" not in repr(DIPPurifier())
    assert "ended early=5" in repr(run)


def test_an_empty_batch(tiny: DIPConfig) -> None:
    run = reconstruct(torch.rand(0, 3, 32, 32), budgets=(1, 2), config=tiny, stopping="trend")
    assert run.images.shape == (2, 0, 3, 32, 32)
    assert run.stopped == run.iterations == ()


def test_progress_counts_what_stopping_saves(tiny: DIPConfig, images: torch.Tensor, capsys) -> None:
    DIPPurifier(LAST, config=tiny, seed=0, progress=True, stopping=Script(images, [5, 6, 7, 8, 9]))(images)
    assert "100%" in capsys.readouterr().err


def test_names_have_the_default_settings() -> None:
    assert check_stopping("variance") == Variance()
    assert check_stopping("trend") == Trend()
    assert check_stopping(None) is None
    assert Variance().settings == {"rule": "variance", "warm_up": 50, "patience": 100, "decay": 0.1}


BAD = {
    "another name": ("soon", ValueError, 'stopping must be "variance" or "trend", got \'soon\''),
    "a number": (3, TypeError, 'stopping must be "variance", "trend", a rule such as .* got 3'),
    "a class": (Variance, TypeError, "a rule such as Variance"),
}


@pytest.mark.parametrize(("stopping", "error", "message"), BAD.values(), ids=BAD)
def test_what_is_no_rule_is_refused(stopping, error, message: str, images: torch.Tensor) -> None:
    with pytest.raises(error, match=message):
        reconstruct(images, stopping=stopping)
    with pytest.raises(error, match=message):
        DIPPurifier(stopping=stopping)


SETTINGS = {
    "patience": (lambda: Variance(patience=0), ValueError, "patience must be an integer of at least 1"),
    "warm-up": (lambda: Trend(warm_up=1.5), TypeError, "warm_up must be an integer"),
    "no warm-up": (lambda: Variance(warm_up=0), ValueError, "warm_up must be an integer of at least 1, got 0"),
    "decay": (lambda: Variance(decay=0), ValueError, "decay must be a number above 0 and at most 1, got 0"),
    "warm-up of a trend": (lambda: Trend(warm_up=1), ValueError, "warm_up must be an integer of at least 2, got 1"),
    "smoothing": (lambda: Trend(smoothing=float("nan")), ValueError, "smoothing must be a number above 0"),
}


@pytest.mark.parametrize(("make", "error", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings_out_of_range_are_refused(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("backend", ["native", "cudagraphs", "triton"])
def test_other_backends_are_refused(backend, images: torch.Tensor) -> None:
    for call in (
        lambda: reconstruct(images, stopping="trend", backend=backend),
        lambda: DIPPurifier(stopping="trend", backend=backend),
    ):
        with pytest.raises(ValueError, match=f'stopping needs backend="torch", got "{backend}"'):
            call()


def test_the_preprocessor_of_art_stops_too(tiny: DIPConfig, images: torch.Tensor) -> None:
    from dipdefense.art import DIPPreprocessor

    defence = DIPPreprocessor(LAST, config=tiny, seed=0, stopping=RULES["variance"])
    expected = reconstruct(images, budgets=(LAST,), config=tiny, seed=0, stopping=RULES["variance"]).images[0]
    assert torch.equal(defence.forward(images)[0], expected)
    with pytest.raises(ValueError, match="stopping must be"):
        defence.set_params(stopping="soon")
