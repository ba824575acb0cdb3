"""Unrolled fits and stand-ins as surrogates, and the purifier under attack."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from attacks.adaptive.defended import Blur, Rounded, batch, network
from torch import Tensor, nn

from dipdefense import DIPConfig, DIPPurifier
from dipdefense.attacks.adaptive import BPDA, KnownSeed, StandIn, Threat, Trajectory, Unrolled
from dipdefense.attacks.adaptive.checkpoint import Progress
from dipdefense.attacks.adaptive.losses import Objective
from dipdefense.attacks.adaptive.samples import purified, sampled
from dipdefense.attacks.adaptive.stand_in import fitted
from dipdefense.attacks.adaptive.task import Task
from dipdefense.attacks.adaptive.threat import Ball
from dipdefense.attacks.adaptive.unroll import unrolled

LINF = Threat(epsilon=8)
DIP = DIPConfig.architecture_2()


def test_a_stand_in_reproduces_outputs_that_it_was_not_fitted_to() -> None:
    images, _ = batch(8, side=24)
    defence = Blur()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stand_in = fitted(images[:4], defence(images[:4]), width=16, fits=300, rate=0.01)
    unchanged = (images[4:] - defence(images[4:])).square().mean()
    assert (stand_in(images[4:]) - defence(images[4:])).square().mean() < 0.05 * unchanged
    assert not any(parameter.requires_grad for parameter in stand_in.parameters())


def test_pairs_that_diverged_are_left_out() -> None:
    images, _ = batch()
    outputs = torch.cat([images[:1] * torch.nan, images[1:]])
    assert fitted(images, outputs, width=4, fits=2, rate=0.01)(images).isfinite().all()
    assert torch.equal(fitted(images, images * torch.nan, width=4, fits=2, rate=0.01)(images), images)


def test_a_stand_in_breaks_a_defence_without_gradient() -> None:
    images, labels = batch(8)
    labels = network().eval()(Rounded()(images)).argmax(dim=1)
    attack = StandIn(steps=20, pairs=2, fits=50)
    adversarial = attack(Rounded(), network(), images, labels, threat=Threat(epsilon=64), seed=0)
    assert network().eval()(Rounded()(adversarial)).argmax(dim=1).ne(labels).float().mean() > 0.8


def faces() -> tuple[Tensor, Tensor]:
    return batch(2, side=32)


def test_unrolling_raises_the_loss_of_the_purifier_whose_iterations_it_has() -> None:
    images, labels = faces()
    purifier, threat = DIPPurifier(iters=4, config=DIP, seed=9), Threat(epsilon=32)
    adversarial = Unrolled(steps=4, iterations=4, adam_eps=None)(
        purifier, network(), images, labels, threat=threat, seed=0
    )
    model = network().eval()
    losses = [F.cross_entropy(model(purifier(each)), labels) for each in (images, adversarial)]
    assert losses[1] > losses[0]


def test_unrolling_stops_where_the_purifier_does() -> None:
    images, labels = faces()
    results = [
        Unrolled(steps=1, iterations=iterations)(
            DIPPurifier(iters=2, config=DIP), network(), images, labels, threat=LINF, seed=0
        )
        for iterations in (2, 50)
    ]
    assert torch.equal(*results)


def test_the_unrolled_gradient_is_that_of_the_purifier_and_of_norm_one() -> None:
    images, labels = faces()
    purifier = DIPPurifier(iters=9, config=DIP)
    task = Task(purifier, network().eval(), labels, Ball(images, LINF), 0, Progress(None, ""))
    for adam_eps in (None, 1e-2):
        estimator = Unrolled(iterations=3, adam_eps=adam_eps)._estimator(task)
        estimate = estimator(Objective(labels, "ce"), images, 7)
        config = DIP if adam_eps is None else dataclasses.replace(DIP, adam_eps=adam_eps)
        with sampled(7, images.device):
            seeds = torch.randint(2**63 - 1, (2,)).tolist()
        variable = images.clone().requires_grad_()
        output = unrolled(variable, iterations=3, config=config, seeds=seeds)
        losses = F.cross_entropy(task.classifier(output), labels, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), variable)
        expected = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
        assert torch.allclose(estimate.loss, losses)
        assert torch.allclose(estimate.gradient, expected, atol=1e-5)


@pytest.mark.parametrize("gradient", ["straight-through", "none"])
def test_the_purifier_is_attacked_whatever_its_gradient_rule(gradient) -> None:
    images, labels = faces()
    purifier = DIPPurifier(iters=3, config=DIP, gradient=gradient)
    results = [BPDA(steps=2)(purifier, network(), images, labels, threat=LINF, seed=0) for _ in range(2)]
    assert torch.equal(*results)


def test_the_purifiers_trajectory_is_its_intermediate_outputs() -> None:
    images, labels = faces()
    purifier = DIPPurifier(iters=4, config=DIP)
    adversarial = Trajectory(steps=2, points=2)(purifier, network(), images, labels, threat=LINF, seed=0)
    assert not torch.equal(adversarial, images)


def test_a_known_seed_is_the_purifiers() -> None:
    images, labels = faces()
    purifier, seen = DIPPurifier(iters=2, config=DIP), []

    class Recorded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            output = purifier(images)
            seen.append((images.detach().clone(), output.detach()))
            return output

    KnownSeed(steps=1, known=5)(Recorded(), network(), images, labels, threat=LINF, seed=0)
    assert len(seen) == 2
    assert all(torch.equal(purified(purifier, given, seed=5), output) for given, output in seen)
