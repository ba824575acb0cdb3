"""Sanity checks pass on an honest defence and fail on those built to fool them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measuring import record
from torch import Tensor, nn

from dipdefense import DIPPurifier
from dipdefense.evaluation import AdaptiveReport, Level, evaluate
from dipdefense.evaluation.adaptive.judging import verdicts
from dipdefense.evaluation.adaptive.probes import Probes, probe
from dipdefense.evaluation.adaptive.sanity import Sanity, leaderboards

UNBOUNDED = "an unbounded perturbation reaches 0 %"
ITERATIVE = "iterative attacks are at least as strong as one step"
TRANSFER = "white-box attacks are at least as strong as the transfer attack"
SQUARE = "white-box attacks are at least as strong as Square"
STEPS = "more steps change nothing"
SAMPLES = "more samples change nothing"
FALLS = "accuracy falls with ε"
NOISE = "attacks are stronger than random noise of the same norm"
LOSS = "the loss rises under attack, by more than under noise"
FRESH = "the judging draws are fresh: a defence that samples gives another output for another seed"
LOOKS = "another image gets another output"
REPEATS = "one seed gives one output, whatever was asked in between"
ZERO = "AutoAttack: no zero gradients"

TINY = Level(
    name="tiny",
    attacks={
        "transfer": {"steps": 5},
        "bpda": {"steps": 10},
        "bpda-eot": {"steps": 10, "samples": 2},
        "square": {"queries": 60},
    },
    controls={
        "one-step": {"steps": 1},
        "unbounded": {"steps": 5},
        "more-steps": {"steps": 20},
        "more-draws": {"steps": 10, "samples": 4},
    },
    draws=4,
    control_draws=2,
)


class Linear(nn.Module):
    """A classifier of 4 classes whose every image can be attacked."""

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(3 * 8 * 8, 4, generator=generator) / 14)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * (images - 0.5).flatten(1) @ self.weight


class Honest(nn.Module):
    """A little noise, taken as it should be from torch's default generator."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.01 * torch.randn_like(images)


class Inverted(nn.Module):
    """Its output falls as the image rises: the identity gradient has the wrong sign."""

    def forward(self, images: Tensor) -> Tensor:
        return 1 - images


class Shattered(Inverted):
    """The same, without a gradient of its own."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


class Vanishing(nn.Module):
    """Eight values a channel: the gradient is zero wherever there is one."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * 7).round() / 7


class SameDraw(nn.Module):
    """Random to look at, and every call has the draw that the attack had."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.01 * torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0))


class DrawnOnce(nn.Module):
    """Draws at the first call, and keeps what it drew."""

    drawn: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.drawn is None:
            self.drawn = 0.01 * torch.randn(images.shape[1:])
        return images + self.drawn


class Cached(nn.Module):
    """Answers with its first output for an image that is near one that it has seen."""

    def __init__(self, near: float) -> None:
        super().__init__()
        self.near = near
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.stack([self._answer(image) for image in images.detach()]) - images.detach()

    def _answer(self, image: Tensor) -> Tensor:
        for other in self.seen:
            if (image - other).abs().mean() <= self.near:
                return other
        self.seen.append(image)
        return image


class Stateful(nn.Module):
    """The more often it is asked, the more it blurs."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images * (1 - 0.001 * self.calls)


class Fitted(nn.Module):
    """Optimises at inference, by whatever import of torch's functions."""

    def forward(self, images: Tensor) -> Tensor:
        from torch.autograd import grad

        with torch.enable_grad():
            variable = images.detach().clone().requires_grad_()
            (gradient,) = grad((variable - 0.5).square().sum(), variable)
        return images - 0.01 * gradient


def questions(classifier: nn.Module, defence: nn.Module | None = None, count: int = 6) -> tuple[Tensor, Tensor]:
    """Images that the defended classifier classifies correctly."""
    images = 0.2 + 0.6 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = classifier(images if defence is None else defence(images)).argmax(dim=1)
    return images, labels


@functools.cache
def report(make: Callable[[], nn.Module], scale: float = 20.0) -> AdaptiveReport:
    classifier = Linear(scale)
    images, labels = questions(classifier, None if make in (Cached, far) else make())
    return evaluate(make(), classifier, images, labels, level=TINY, epsilon=(8, 16), tell=None)


def far() -> nn.Module:
    return Cached(near=10)


def statuses(found: AdaptiveReport) -> dict[str, str]:
    return {check.title: check.status for check in found.sanity(("defence", 1))}


def test_every_check_passes_on_an_honest_defence() -> None:
    found = statuses(report(Honest))
    wrong = {title: status for title, status in found.items() if status not in ("pass", "flag")}
    assert wrong == {}
    assert [title for title, status in found.items() if status == "flag"] == ["AutoAttack: the output is not random"]


@pytest.mark.parametrize(
    ("make", "scale", "failed"),
    [
        pytest.param(Shattered, 20.0, {SQUARE, NOISE, SAMPLES}, id="shattered gradient"),
        pytest.param(Honest, 1e6, {UNBOUNDED, SQUARE, ZERO}, id="vanishing gradient"),
        pytest.param(Vanishing, 20.0, {ZERO}, id="vanishing gradient of the defence"),
        pytest.param(SameDraw, 20.0, {FRESH}, id="the same draw"),
        pytest.param(DrawnOnce, 20.0, {FRESH}, id="drawn once"),
        pytest.param(far, 20.0, {UNBOUNDED, NOISE, LOSS, LOOKS}, id="a cache"),
        pytest.param(Stateful, 20.0, {REPEATS}, id="state"),
    ],
)  # fmt: skip
def test_a_check_fails_on_the_defence_that_is_built_to_fool_it(
    make: Callable[[], nn.Module], scale: float, failed: set[str]
) -> None:
    found = report(make, scale)
    assert failed <= {title for title, status in statuses(found).items() if status == "fail"}
    for title in failed:
        assert f"- FAIL: {title[:60]}" in str(found)


def test_the_nearest_image_is_a_cache_too() -> None:
    classifier = Linear()
    images, labels = questions(classifier)
    assert not probe(Cached(near=0.05), classifier, images, labels).looks


def test_iterative_attacks_weaker_than_one_step_are_seen() -> None:
    """Made up, for no honest attack does it: one step reaches 0 %, ten steps nothing."""
    found = doctored(report(Honest), lambda condition: {"one-step": False}.get(condition.partition("-8@")[0], True))
    assert {ITERATIVE} <= {title for title, status in found.items() if status == "fail"}


@pytest.mark.parametrize(
    ("wrong", "title"),
    [
        (lambda c: c == "transfer-8", TRANSFER),
        (lambda c: c.startswith("more-steps"), STEPS),
        (lambda c: c.startswith("more-draws"), SAMPLES),
        (lambda c: c.endswith(("-8", "-8@defence-1")), FALLS),
    ],
)
def test_the_other_checks_can_fail(wrong: Callable[[str], bool], title: str) -> None:
    found = doctored(report(Honest), lambda condition: not wrong(condition))
    assert found[title] == "fail"


def doctored(found: AdaptiveReport, correct: Callable[[str], bool]) -> dict[str, str]:
    """The checks of a report whose outcomes depend on the condition alone."""
    records = tuple(
        dataclasses.replace(r, prediction=r.label if correct(r.condition) else (r.label + 1) % 4)
        for r in found.run.records
    )
    return statuses(AdaptiveReport(dataclasses.replace(found.run, records=records), found.probes))


def test_an_attack_as_weak_as_noise_is_no_stronger_by_luck() -> None:
    """Every draw is right but one, of one image, under each attack."""
    unlucky = {r.condition: r.key for r in report(Honest).run.records if r.condition.startswith("bpda-")}
    records = tuple(
        dataclasses.replace(r, prediction=(r.label + 1) % 4 if r.key in unlucky.values() else r.label)
        for r in report(Honest).run.records
    )
    found = AdaptiveReport(dataclasses.replace(report(Honest).run, records=records), report(Honest).probes)
    (check,) = [check for check in found.sanity(("defence", 1)) if check.title == NOISE]
    assert check.status == "fail"
    assert "95.8 % (bpda) : 100.0 % at 8" in check.detail


def test_a_loss_as_low_as_under_noise_is_no_rise() -> None:
    def status(clean: float, noise: float, attacked: float) -> str:
        confidences = {"clean": clean, "noise-8": noise, "noise-16": noise}
        records = tuple(
            dataclasses.replace(r, confidence=confidences.get(r.condition, attacked))
            for r in report(Honest).run.records
        )
        return statuses(AdaptiveReport(dataclasses.replace(report(Honest).run, records=records)))[LOSS]

    assert status(clean=0.9, noise=0.5, attacked=0.3) == "pass"
    assert status(clean=0.9, noise=0.5, attacked=0.5) == "fail"
    assert status(clean=0.9, noise=0.95, attacked=0.9) == "fail"


def test_a_gradient_of_the_defences_own_is_attacked_with_too() -> None:
    found = report(Inverted)
    own, identity = (found.judged(name, ("defence", 1), 8) for name in ("own-gradient", "bpda"))
    assert own is not None
    assert identity is not None
    assert own.mean < identity.mean
    assert found.judged("worst case", ("defence", 1), 8).mean == own.mean
    assert "own gradient (10 steps)" in str(found)
    # Nothing of its own: the identity's gradient, and none.
    for make in (Honest, Shattered):
        assert report(make).judged("own-gradient", ("defence", 1), 8) is None


def test_the_own_gradient_of_a_random_defence_is_averaged_as_the_levels_eot_is() -> None:
    class Noisy(Inverted):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + 0.01 * torch.randn_like(images)

    classifier = Linear()
    found = evaluate(Noisy(), classifier, *questions(classifier, count=2), level=TINY, tell=None)
    settings = found.run.configuration["adaptive"]["attacks"]["own-gradient"]
    assert settings == {"steps": 10, "samples": 2}


def test_chance_is_considered_where_a_random_defence_is_asked_once() -> None:
    """18 of 25 are right, 14 with more steps: within two standard errors of 25 draws."""
    records = [
        record(
            f"{place}",
            condition=f"{name}-8@defence-1",
            defence="defence",
            budget=1,
            position=place,
            label=1,
            prediction=place < right,
        )
        for name, right in (("bpda", 18), ("more-steps", 14))
        for place in range(25)
    ]
    known = Probes(
        randomised=True, samples=True, repeatable=True, looks=True, optimises=False, probabilities=False,
        zero_gradients=0, images=4, classes=4,
    )  # fmt: skip
    for probes, status in ((known, "pass"), (dataclasses.replace(known, randomised=False), "fail")):
        checks = {check.title: check.status for check in Sanity(verdicts(records), ("defence", 1), probes).checks()}
        assert checks[STEPS] == status


def test_without_its_control_a_check_is_named_as_not_measured() -> None:
    classifier = Linear()
    images, labels = questions(classifier)
    bare = Level(name="bare", attacks={"bpda": {"steps": 2}}, draws=2)
    found = evaluate(Honest(), classifier, images, labels, level=bare, tell=None)
    missing = {UNBOUNDED, ITERATIVE, TRANSFER, SQUARE, STEPS, SAMPLES, FALLS}
    assert {title for title, status in statuses(found).items() if status == "not measured"} >= missing
    assert str(found).count("- NOT MEASURED: ") >= len(missing)


class Compiled(DIPPurifier):
    """Its iterations take no gradients that torch knows of, as those in C++."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 2


def probed(defence: nn.Module, classifier: nn.Module | None = None) -> Probes:
    classifier = classifier or Linear()
    return probe(defence, classifier, *questions(classifier, count=2))


@pytest.mark.parametrize(
    ("defence", "properties"),
    [
        (nn.Identity(), {"randomised": False, "samples": False, "optimises": False, "zero_gradients": 0, "classes": 4}),
        (Honest(), {"randomised": True, "samples": True, "repeatable": True}),
        (Fitted(), {"optimises": True, "randomised": False}),
        (Compiled(2), {"optimises": True}),
        (Vanishing(), {"zero_gradients": 2, "images": 2, "own_gradient": False}),
        (Inverted(), {"zero_gradients": 0, "own_gradient": True}),
        (Shattered(), {"zero_gradients": 2, "own_gradient": False}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_properties_of_defences(defence: nn.Module, properties: dict[str, Any]) -> None:
    found = probed(defence)
    assert {name: getattr(found, name) for name in properties} == properties
    assert Probes.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("property_", "value", "title", "status"),
    [
        ("probabilities", True, "AutoAttack: outputs are logits, no probabilities", "fail"),
        ("classes", 3, "AutoAttack: enough classes for its losses", "fail"),
        ("optimises", True, "AutoAttack: no optimisation at inference", "flag"),
        ("randomised", True, "AutoAttack: the output is not random", "flag"),
    ],
)
def test_a_property_raises_its_flag(property_: str, value: Any, title: str, status: str) -> None:
    found = report(Honest)
    (name,) = found.probes
    plain = dataclasses.replace(found.probes[name], randomised=False, samples=False)
    assert statuses(dataclasses.replace(found, probes={name: plain}))[title] == "pass"
    raised = dataclasses.replace(plain, **{property_: value})
    assert statuses(dataclasses.replace(found, probes={name: raised}))[title] == status


def test_probabilities_are_told_from_logits() -> None:
    assert probed(nn.Identity(), nn.Sequential(Linear(), nn.Softmax(dim=1))).probabilities
    assert not probed(nn.Identity()).probabilities


def test_a_probe_leaves_the_generator_and_the_modes_alone() -> None:
    defence, classifier = Honest().train(), Linear().train()
    torch.manual_seed(3)
    probe(defence, classifier, *questions(classifier, count=2))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert after == torch.rand(1)
    assert defence.training
    assert classifier.training


def test_the_report_says_why_leaderboards_exclude_the_defence() -> None:
    assert "is randomised. RobustBench excludes" in str(report(Honest)).replace("\n", " ")
    assert "optimises at inference. RobustBench" in leaderboards(probed(Fitted()))
    assert leaderboards(probed(nn.Identity())) == leaderboards(None) == ""
