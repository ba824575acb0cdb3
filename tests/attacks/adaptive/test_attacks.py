"""Every adaptive attack: bounds, seeds, generators, modes, costs and resuming."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacks.adaptive.defended import Noise, Steps, batch, network
from torch import Tensor, nn

from dipdefense import DIPConfig, DIPPurifier
from dipdefense.attacks.adaptive import ATTACKS, Adaptive, Checkpoint, Threat
from dipdefense.attacks.adaptive.unrolled import Unrolled

SMALL: dict[str, Callable[[], Adaptive]] = {
    "transfer": lambda: ATTACKS["transfer"](steps=4),
    "bpda": lambda: ATTACKS["bpda"](steps=6),
    "bpda pgd": lambda: ATTACKS["bpda"](steps=4, rule="pgd", restarts=2),
    "own-gradient": lambda: ATTACKS["own-gradient"](steps=6),
    "trajectory": lambda: ATTACKS["trajectory"](steps=4, points=3),
    "bpda-eot": lambda: ATTACKS["bpda-eot"](steps=3, samples=2),
    "bpda-eot-targeted": lambda: ATTACKS["bpda-eot-targeted"](steps=3, samples=2, restarts=2),
    "known-seed": lambda: ATTACKS["known-seed"](steps=6),
    "unrolled": lambda: ATTACKS["unrolled"](steps=2, iterations=3),
    "stand-in": lambda: ATTACKS["stand-in"](steps=4, pairs=2, fits=5),
    "low-frequency": lambda: ATTACKS["low-frequency"](steps=6),
    "square": lambda: ATTACKS["square"](queries=10, samples=2),
}
DIP = DIPConfig(scales=2, channels=4, skip_channels=2, input_channels=3)
THREATS = {"Linf": Threat(epsilon=8), "L2": Threat(epsilon=0.5, norm="L2"), "everything": Threat(epsilon=255)}
ALL = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)


def defence_for(attack: Adaptive) -> nn.Module:
    return DIPPurifier(iters=3, config=DIP) if isinstance(attack, Unrolled) else Steps()


def attacked(attack: Adaptive, threat: Threat = THREATS["Linf"], **settings) -> Tensor:
    images, labels = batch()
    settings = {"seed": 0, **settings}
    return attack(defence_for(attack), network(), images, labels, threat=threat, **settings)


@ALL
@pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)
def test_images_stay_in_the_ball_and_change(make, threat: Threat) -> None:
    images, _ = batch()
    adversarial = attacked(make(), threat)
    change = (adversarial - images).flatten(1)
    size = change.abs().amax(dim=1) if threat.norm == "Linf" else change.norm(dim=1)
    assert adversarial.shape == images.shape
    assert adversarial.dtype == torch.float32
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    assert (size <= threat.radius + 1e-6).all()
    assert (size > 0.1 * min(threat.radius, 1)).all()


@ALL
def test_a_seed_fixes_everything_and_touches_no_generator(make) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = attacked(make())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(attacked(make()), first)
    assert not torch.equal(attacked(make(), seed=1), first)


@ALL
def test_no_seed_is_a_fresh_one(make) -> None:
    torch.manual_seed(5)
    first, second = attacked(make(), seed=None), attacked(make(), seed=None)
    torch.manual_seed(5)
    assert torch.equal(attacked(make(), seed=None), first)
    assert not torch.equal(first, second)


@ALL
def test_one_seed_an_image_attacks_each_by_itself(make) -> None:
    images, labels = batch()
    together = attacked(make(), seed=[3, 4, 5, 6])
    alone = make()(defence_for(make()), network(), images[1:2], labels[1:2], threat=THREATS["Linf"], seed=4)
    assert torch.equal(together[1:2], alone)


@ALL
def test_classifier_and_images_are_left_as_they_were(make) -> None:
    model = network().train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state, (images, labels) = copy.deepcopy(model.state_dict()), batch()
    with torch.inference_mode():
        make()(defence_for(make()), model, images, labels, threat=THREATS["Linf"], seed=0)
    assert all(module.training for module in model.modules())
    assert all((parameter.grad == 1).all() and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(images, batch()[0])


@ALL
def test_purifications_are_what_is_run(make) -> None:
    attack, defence, (images, labels) = make(), Steps(), batch()
    if isinstance(attack, Unrolled):
        assert attack.purifications() == 0
        return
    attack(defence, network(), images, labels, threat=THREATS["Linf"], seed=0)
    assert len(defence.budgets) == attack.purifications()


@ALL
def test_an_attack_on_no_images_returns_none(make) -> None:
    images, labels = torch.rand(0, 3, 15, 15), torch.zeros(0, dtype=torch.int64)
    assert make()(defence_for(make()), network(), images, labels, threat=THREATS["Linf"], seed=0).shape == images.shape


@ALL
def test_images_and_labels_may_come_from_inference_mode(make) -> None:
    attack, model, given = make(), network(), batch()
    defence = defence_for(attack)
    with torch.inference_mode():
        images, labels = (each.clone() for each in given)
        found = attack(defence, model, images, labels, threat=THREATS["Linf"], seed=0)
    assert torch.equal(found, attacked(make()))


class Killed(nn.Module):
    """Fails at one of its calls, as a kill would."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__()
        self.model, self.left = model, at

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.model(images)


@ALL
@pytest.mark.parametrize("seed", [0, [3, 4, 5, 6]], ids=["a batch", "one by one"])
def test_a_killed_run_resumes_to_the_same_result(make, seed, tmp_path: Path) -> None:
    images, labels = batch()
    checkpoint = Checkpoint(tmp_path / "attack.pt", seconds=0)

    def run(at: int = -1, **settings) -> tuple[Tensor, int]:
        """The result and the calls of the classifier."""
        classifier = Killed(network(), at)
        result = make()(defence_for(make()), classifier, images, labels, threat=THREATS["Linf"], seed=seed, **settings)
        return result, at - classifier.left

    expected, whole = run()
    for at in (2, whole * 3 // 4):
        with pytest.raises(KeyboardInterrupt):
            run(at, checkpoint=checkpoint)
    resumed, calls = run(checkpoint=checkpoint)
    assert torch.equal(resumed, expected)
    assert calls < whole
    resumed, calls = run(checkpoint=checkpoint)
    assert torch.equal(resumed, expected)
    assert calls <= 3 * len(images)
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_have_defaults(name: str) -> None:
    assert ATTACKS[name]().purifications() >= 0


def test_every_attack_is_tested() -> None:
    assert {name.split()[0] for name in SMALL} == set(ATTACKS)


def test_each_step_meets_a_fresh_sample() -> None:
    defence, (images, labels) = Noise(), batch()
    ATTACKS["bpda-eot"](steps=3, samples=2)(defence, network(), images, labels, threat=THREATS["Linf"], seed=0)
    assert len(set(defence.seen)) == defence.calls == 8
