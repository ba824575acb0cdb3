"""The loop against AutoAttack's APGD and a PGD by hand, and the attacks' success."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attacks.adaptive.defended import Noise, Rounded, batch, network
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from dipdefense.attacks.adaptive import BPDA, BPDAEOT, KnownSeed, LowFrequency, Square, Threat, Transfer
from dipdefense.attacks.adaptive.ascent import ascend
from dipdefense.attacks.adaptive.gradients import Estimate
from dipdefense.attacks.adaptive.low_frequency import low_pass
from dipdefense.attacks.adaptive.samples import purified
from dipdefense.attacks.adaptive.threat import Ball
from dipdefense.randomization import RandomResizePad

LINF, L2 = Threat(epsilon=8), Threat(epsilon=0.5, norm="L2")
THREATS = pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])


def estimator(model: nn.Module, labels: Tensor):
    def estimate(images: Tensor, step: int) -> Estimate:
        images = images.detach().requires_grad_()
        losses = F.cross_entropy(model(images), labels, reduction="none")
        gradient = torch.autograd.grad(losses.sum(), images)[0]
        return Estimate(gradient, losses.detach(), losses.detach())

    return estimate


@THREATS
def test_apgd_is_autoattacks(threat: Threat) -> None:
    images, labels = batch(side=10)
    model = network().eval()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        library = APGDAttack(model, n_iter=40, norm=threat.norm, eps=threat.radius, loss="ce")
        expected = library.perturb(images, labels, best_loss=True)
        torch.manual_seed(4)
        generator = torch.default_generator
        ball = Ball(images, threat)
        *_, last = ascend(
            estimator(model, labels), ball, lambda: ball.start(generator), rule="apgd", steps=40, size=2 * threat.radius
        )
    assert last.sizes.unique().numel() > 1  # some step sizes were halved
    assert torch.allclose(last.kept, expected, atol=1e-5)


@THREATS
def test_pgd_by_hand(threat: Threat) -> None:
    images, labels = batch()
    model, ball = network().eval(), Ball(images, threat)
    estimate = estimator(model, labels)
    *_, last = ascend(estimate, ball, lambda: images, rule="pgd", steps=3, size=0.01)
    iterate, iterates = images, [images]
    for _ in range(3):
        gradient = estimate(iterate, 0).gradient
        if threat.norm == "Linf":
            iterate = iterate + 0.01 * gradient.sign()
            iterate = iterate.clamp(images - threat.radius, images + threat.radius).clamp(0, 1)
        else:
            iterate = (iterate + 0.01 * F.normalize(gradient.flatten(1)).view_as(images)).clamp(0, 1)
        iterates.append(iterate)
    assert torch.allclose(last.images, iterate, atol=1e-6)
    losses = torch.stack([F.cross_entropy(model(each), labels, reduction="none") for each in iterates])
    expected = torch.stack(iterates)[losses.argmax(dim=0), range(len(images))]
    assert torch.allclose(last.kept, expected, atol=1e-6)


@pytest.mark.parametrize("rule", ["pgd", "apgd"])
def test_the_iterate_of_the_greatest_judged_loss_is_kept(rule) -> None:
    images, seen = batch(2)[0], []
    judged = torch.tensor([[0.0, 5.0], [3.0, 4.0], [1.0, 6.0], [2.0, 5.0]])

    def estimate(images: Tensor, step: int) -> Estimate:
        seen.append(images)
        return Estimate(torch.ones_like(images), torch.arange(2.0) + step, judged[step])

    *_, last = ascend(estimate, Ball(images, LINF), lambda: images - 0.03, rule=rule, steps=3, size=0.01)
    assert torch.equal(last.kept, torch.stack([seen[1][0], seen[2][1]]))
    assert last.kept_loss.tolist() == [3.0, 6.0]


def accuracy(defence: nn.Module, adversarial: Tensor, labels: Tensor, *, samples: int = 10) -> float:
    """On samples that no attack saw."""
    model, right = network().eval(), []
    for seed in range(samples):
        right.append(model(purified(defence, adversarial, seed=seed)).argmax(dim=1) == labels)
    return torch.stack(right).float().mean().item()


def test_bpda_breaks_a_shattered_gradient_where_its_own_does_not() -> None:
    images, labels = batch(8)
    labels = network().eval()(Rounded()(images)).argmax(dim=1)
    results = {}
    for backward in ("identity", "own"):
        attack = BPDA(steps=20, backward=backward)
        adversarial = attack(Rounded(), network(), images, labels, threat=Threat(epsilon=64), seed=0)
        results[backward] = accuracy(Rounded(), adversarial, labels, samples=1)
    assert results["identity"] == 0
    assert results["own"] > 0.5


def test_a_random_defence_falls_to_averaged_gradients() -> None:
    images, labels = batch(8, side=16)
    defence = RandomResizePad()
    assert accuracy(defence, images, labels) > 0.7
    attack = BPDAEOT(steps=20, step_size=0.2, samples=5)
    adversarial = attack(defence, network(), images, labels, threat=Threat(epsilon=64), seed=0)
    assert accuracy(defence, adversarial, labels) < 0.1


def test_a_targeted_attack_reaches_its_target() -> None:
    images, labels = batch(8)
    model = network().eval()
    targets = model(images).scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    attack = BPDA(steps=30, targeted=True)
    adversarial = attack(nn.Identity(), model, images, labels, threat=Threat(epsilon=48), seed=0)
    assert (model(adversarial).argmax(dim=1) == targets).float().mean() >= 0.75


def test_a_known_seed_is_the_only_sample_and_beats_fresh_ones() -> None:
    defence, (images, labels) = Noise(0.3), batch(8)
    attack = KnownSeed(steps=20, known=77)
    adversarial = attack(defence, network(), images, labels, threat=LINF, seed=0)
    assert len(set(defence.seen)) == 1
    known = (network().eval()(purified(defence, adversarial, seed=77)).argmax(dim=1) == labels).float().mean()
    assert known < accuracy(defence, adversarial, labels)


@THREATS
def test_a_low_frequency_perturbation_has_no_energy_outside_its_basis(threat: Threat) -> None:
    images, labels = batch()
    images = 0.2 + 0.6 * images  # nothing is clipped to [0, 1]
    adversarial = LowFrequency(steps=10, kept=0.3)(nn.Identity(), network(), images, labels, threat=threat, seed=0)
    change = adversarial - images
    assert torch.allclose(low_pass(change, 0.3), change, atol=1e-6)
    # The basis by itself: 4 of 15 cosines each way.
    assert torch.linalg.matrix_rank(change[0, 0], atol=1e-5) <= 4
    assert network().eval()(adversarial).argmax(dim=1).ne(labels).any()


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        raise AssertionError("this attack takes a gradient")


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.ones(())), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return NoGradient.apply(images * self.scale)


@THREATS
def test_square_takes_no_gradient_asks_every_query_and_succeeds(threat: Threat) -> None:
    images, labels = batch()
    defence = Opaque()
    attack = Square(queries=60)
    adversarial = attack(defence, network(), images, labels, threat=threat, seed=0)
    assert defence.calls == 61
    model = network().eval()
    losses = [F.cross_entropy(model(each), labels, reduction="none") for each in (images, adversarial)]
    assert (losses[1] > losses[0]).all()
    with pytest.raises(AssertionError, match="takes a gradient"):
        BPDA(steps=1, backward="own")(defence, network(), images, labels, threat=threat, seed=0)


def test_transfer_takes_the_worse_of_both_losses() -> None:
    images, labels = batch(8)
    model = network().eval()
    adversarial = Transfer(steps=20)(Opaque(), model, images, labels, threat=Threat(epsilon=64), seed=0)
    assert (model(adversarial).argmax(dim=1) == labels).float().mean() == 0


def test_more_epsilon_breaks_everything() -> None:
    images, labels = batch(8)
    adversarial = BPDA(steps=30)(nn.Identity(), network(), images, labels, threat=Threat(epsilon=255), seed=0)
    assert accuracy(nn.Identity(), adversarial, labels, samples=1) == 0
