"""The gradients that attackers estimate, against gradients taken by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attacks.adaptive.defended import Noise, Rounded, Steps, batch, network
from torch import Tensor, nn

from dipdefense.attacks.adaptive import gradients
from dipdefense.attacks.adaptive.checkpoint import Progress
from dipdefense.attacks.adaptive.losses import Objective, margin
from dipdefense.attacks.adaptive.samples import derived, purified, sampled
from dipdefense.attacks.adaptive.task import Task
from dipdefense.attacks.adaptive.threat import Ball, Threat
from dipdefense.randomization import RandomResizePad


def task(defence: nn.Module) -> Task:
    images, labels = batch()
    return Task(defence, network().eval(), labels, Ball(images, Threat(epsilon=8)), 0, Progress(None, ""))


def objective(given: Task, loss="ce", targets: Tensor | None = None) -> Objective:
    return Objective(given.labels, loss, targets)


def by_hand(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    losses = F.cross_entropy(model(images), labels, reduction="none")
    return torch.autograd.grad(losses.sum(), images)[0], losses.detach()


def test_identity_is_the_gradient_at_the_output() -> None:
    given = task(Rounded())
    estimate = gradients.through(given, "identity")(objective(given), given.clean, 3)
    expected, losses = by_hand(given.classifier, Rounded()(given.clean), given.labels)
    assert torch.equal(estimate.gradient, expected)
    assert torch.equal(estimate.loss, losses)
    assert torch.equal(estimate.judged, losses)


def test_a_defences_own_gradient_may_be_zero() -> None:
    given = task(Rounded())
    assert (gradients.through(given, "own")(objective(given), given.clean, 3).gradient == 0).all()


def test_auto_takes_the_own_gradient_between_two_shapes() -> None:
    given = task(RandomResizePad())
    estimate = gradients.through(given, "auto")(objective(given), given.clean, 3)
    with sampled(3, torch.device("cpu")):
        expected, _ = by_hand(nn.Sequential(RandomResizePad(), given.classifier), given.clean, given.labels)
    assert torch.equal(estimate.gradient, expected)


def test_the_mean_over_samples_is_that_of_separate_calls() -> None:
    given, seeds = task(Noise()), [4, 5, 6]
    estimator = gradients.through(given, "auto")
    estimate = gradients.mean([estimator(objective(given), given.clean, seed) for seed in seeds])
    parts = [by_hand(given.classifier, purified(given.defence, given.clean, seed=seed), given.labels) for seed in seeds]
    assert torch.allclose(estimate.gradient, sum(gradient for gradient, _ in parts) / 3, atol=1e-7)
    assert torch.allclose(estimate.loss, sum(loss for _, loss in parts) / 3)


def test_trajectory_is_the_mean_over_the_outputs_of_one_run() -> None:
    given = task(Steps(iters=6))
    estimate = gradients.along_the_trajectory(given, 3)(objective(given), given.clean, 8)
    assert given.defence.budgets == [[2, 4, 6]]
    with sampled(8, torch.device("cpu")):
        outputs = given.defence.reconstruct(given.clean, budgets=(2, 4, 6)).images
    parts = [by_hand(given.classifier, output, given.labels) for output in outputs]
    assert torch.allclose(estimate.gradient, sum(gradient for gradient, _ in parts) / 3, atol=1e-7)
    assert torch.allclose(estimate.loss, sum(loss for _, loss in parts) / 3)
    assert torch.equal(estimate.judged, parts[-1][1])


def test_more_points_than_iterations_are_each_iteration_once() -> None:
    given = task(Steps(iters=2))
    gradients.along_the_trajectory(given, 10)(objective(given), given.clean, 8)
    assert given.defence.budgets == [[1, 2]]


def test_a_reconstruction_that_diverged_has_no_gradient() -> None:
    class Diverged(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([images[:1] * torch.nan, images[1:]])

    given = task(Diverged())
    estimate = gradients.through(given, "auto")(objective(given), given.clean, 3)
    assert (estimate.gradient[0] == 0).all()
    assert estimate.loss[0] == estimate.judged[0] == -torch.inf
    assert estimate.gradient[1:].isfinite().all()


def test_losses_by_hand() -> None:
    logits, labels = torch.tensor([[3.0, 1.0, 0.0, -2.0], [0.0, 4.0, 1.0, 2.0]]), torch.tensor([0, 3])
    assert margin(logits, labels).tolist() == [-2.0, 2.0]
    dlr = Objective(labels, "dlr")(logits)
    assert torch.allclose(dlr, torch.tensor([-2 / 3, 2 / 3]))
    targets = torch.tensor([1, 1])
    targeted = Objective(labels, "dlr", targets)(logits)
    assert torch.allclose(targeted, torch.tensor([-2 / (3 - (0 - 2) / 2), 2 / (4 - (1 + 0) / 2)]))
    towards = Objective(labels, "ce", targets)
    assert torch.allclose(towards(logits), -F.cross_entropy(logits, targets, reduction="none"))
    assert torch.allclose(towards.untargeted(logits), F.cross_entropy(logits, labels, reduction="none"))


def test_a_sample_is_what_seeding_by_hand_gives() -> None:
    images, _ = batch()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    sample = purified(Noise(), images, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        assert torch.equal(sample, Noise()(images))


def test_derived_seeds_differ() -> None:
    seeds = {derived(seed, *path) for seed in range(3) for path in [(1, 2), (12,), ("1", 2), (2, 1)]}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("backward", ["identity", "own"])
def test_estimates_leave_no_gradients_behind(backward) -> None:
    given = task(Noise())
    gradients.through(given, backward)(objective(given), given.clean, 0)
    assert not given.clean.requires_grad
    assert all(parameter.grad is None for parameter in given.classifier.parameters())
