"""FGSM, BI and LLCI against their equations and foolbox, and the noise control."""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Callable

import foolbox
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from art.attacks.evasion import FastGradientMethod
from torch import Tensor, nn

from dipdefense.attacks import TABLE_2, Attack, bi, fgsm, iterations, kurakin, llci, noise, quantise

CLASSES = 5
ALL = pytest.mark.parametrize("attack", [fgsm, bi, llci], ids=lambda attack: attack.__name__)


def network() -> nn.Module:
    """Smooth (no gradient is zero), with every kind of state an attack could disturb."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, stride=2), nn.SiLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, CLASSES)),
        )
        with torch.no_grad():
            model[-1].weight.mul_(20)
    return model.eval()


@pytest.fixture
def classifier() -> nn.Module:
    return network()


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(6, 3, 14, 13, generator=generator)
    images[0, :, :4] = 0.0  # the clipping at both ends has to matter
    images[1, :, :4] = 1.0
    return images


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, 0])


def loss_gradient(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(classifier(images), labels, reduction="sum"), images)[0]


def fgsm_by_hand(classifier: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    return (images + epsilon / 255 * loss_gradient(classifier, images, labels).sign()).clamp(0, 1)


def bi_by_hand(classifier: nn.Module, images: Tensor, labels: Tensor, epsilon: float, *, direction: int = 1) -> Tensor:
    """Kurakin et al. 2016, section 2.2: clips x to min(1, X + ε, max(0, X - ε, x))."""
    steps = {1: 1, 2: 2, 5: 6, 10: 12, 40: 44}[epsilon]
    adversarial = images
    for _ in range(steps):
        adversarial = adversarial + direction / 255 * loss_gradient(classifier, adversarial, labels).sign()
        adversarial = torch.maximum(adversarial, (images - epsilon / 255).clamp(min=0))
        adversarial = torch.minimum(adversarial, (images + epsilon / 255).clamp(max=1))
    return adversarial


def llci_by_hand(classifier: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    return bi_by_hand(classifier, images, classifier(images).argmin(dim=1), epsilon, direction=-1)


def fgsm_of_foolbox(classifier: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    return attack(foolbox.PyTorchModel(classifier, bounds=(0, 1)), images, labels, epsilons=epsilon / 255)[1]


def bi_of_foolbox(classifier: nn.Module, images: Tensor, criterion: object, epsilon: float) -> Tensor:
    attack = foolbox.attacks.LinfBasicIterativeAttack(
        abs_stepsize=1 / 255, steps=iterations(epsilon), random_start=False
    )
    return attack(foolbox.PyTorchModel(classifier, bounds=(0, 1)), images, criterion, epsilons=epsilon / 255)[1]


def llci_of_foolbox(classifier: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    target = foolbox.criteria.TargetedMisclassification(classifier(images).argmin(dim=1))
    return bi_of_foolbox(classifier, images, target, epsilon)


@pytest.mark.parametrize(
    ("attack", "oracle"),
    [
        (fgsm, fgsm_by_hand),
        (bi, bi_by_hand),
        (llci, llci_by_hand),
        (fgsm, fgsm_of_foolbox),
        (bi, bi_of_foolbox),
        (llci, llci_of_foolbox),
    ],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize("epsilon", [1, 2, 5, 10, 40])
def test_same_images_as_the_oracle(attack, oracle: Callable, epsilon: int, classifier, images, labels) -> None:
    adversarial = attack(classifier, images, labels, epsilon=epsilon)
    expected = oracle(classifier, images, labels, epsilon).detach()
    torch.testing.assert_close(adversarial, expected, atol=1e-6, rtol=0)
    assert (adversarial - images).abs().amax(dim=(1, 2, 3)) == pytest.approx(epsilon / 255, abs=1e-6)


@pytest.mark.parametrize(("epsilon", "steps"), [(1, 1), (2, 2), (5, 6), (10, 12), (16, 20), (100, 104)])
def test_iterations(epsilon: int, steps: int) -> None:
    assert iterations(epsilon) == steps


def test_attacks_do_what_they_are_named_for(classifier, images, labels) -> None:
    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(classifier(images), labels, reduction="none").detach()

    least_likely = classifier(images).argmin(dim=1)
    one_step = fgsm(classifier, images, labels, epsilon=10)
    iterated = bi(classifier, images, labels, epsilon=10)
    control = noise(images, epsilon=10, seed=range(6))
    assert (loss(one_step, labels) > loss(images, labels)).all()
    assert (loss(iterated, labels) >= loss(one_step, labels)).all()
    assert ((loss(control, labels) - loss(images, labels)).abs() < loss(one_step, labels) - loss(images, labels)).all()
    assert (loss(llci(classifier, images, labels, epsilon=10), least_likely) < loss(images, least_likely)).all()


@ALL
def test_the_batch_size_does_not_matter(attack, classifier, images, labels) -> None:
    together = attack(classifier, images, labels, epsilon=5)
    for batch_size in (1, 4):
        apart = attack(classifier, images, labels, epsilon=5, batch_size=batch_size)
        assert ((apart - together).abs() > 1e-6).float().mean() < 0.01  # signs of vanishing gradients may differ


@ALL
def test_the_batch_size_bounds_what_the_classifier_sees(attack, classifier, images, labels) -> None:
    sizes = []
    classifier.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    attack(classifier, images, labels, epsilon=2, batch_size=4)
    assert max(sizes) == 4


@pytest.mark.parametrize(
    ("attack", "calls"),
    # One for the number of classes, one a step; BI's success check has two, LLCI has one and the least likely class.
    [(fgsm, 1 + 1), (bi, 1 + 12 + 2), (llci, 1 + 1 + 12 + 1)],
    ids=["fgsm", "bi", "llci"],
)
def test_cost_in_calls_of_the_classifier(attack, calls: int, classifier, images, labels) -> None:
    seen = []
    classifier.register_forward_hook(lambda *_: seen.append(1))
    attack(classifier, images, labels, epsilon=10)
    assert len(seen) == calls


def state(classifier: nn.Module) -> list[object]:
    return [
        [module.training for module in classifier.modules()],
        [parameter.requires_grad for parameter in classifier.parameters()],
        [None if p.grad is None else p.grad.clone() for p in classifier.parameters()],
        [tensor.clone() for tensor in classifier.state_dict().values()],
    ]


@ALL
@pytest.mark.parametrize("fails", [False, True], ids=["done", "interrupted"])
def test_the_classifier_is_left_as_it_was(attack, fails: bool, classifier, images, labels) -> None:
    classifier.train()
    classifier[1].eval()
    classifier[0].bias.requires_grad_(False)
    classifier[3].weight.grad = torch.full_like(classifier[3].weight, 7.0)
    calls = []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if fails and len(calls) == 2:
            raise KeyboardInterrupt

    classifier.register_forward_hook(interrupt)
    before = state(classifier)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            attack(classifier, images, labels, epsilon=2)
    else:
        attack(classifier, images, labels, epsilon=2)
    torch.testing.assert_close(state(classifier), before, rtol=0, atol=0)


@ALL
def test_no_gradient_of_the_parameters_is_computed(attack, classifier, images, labels) -> None:
    wanted = []
    classifier.register_forward_hook(lambda *_: wanted.extend(p.requires_grad for p in classifier.parameters()))
    attack(classifier, images, labels, epsilon=2)
    assert not any(wanted)
    assert wanted


@ALL
def test_the_classifier_is_attacked_in_eval_mode(attack, classifier, images, labels) -> None:
    expected = attack(classifier, images, labels, epsilon=5)
    assert torch.equal(attack(classifier.train(), images, labels, epsilon=5), expected)


class Normalised(nn.Sequential):
    """A Sequential whose own forward does more than run its children."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((0.5 - images) / 0.2)


@ALL
def test_a_sequential_with_its_own_forward_is_called_as_a_whole(attack, images, labels) -> None:
    classifier = Normalised(*network()).eval()
    oracle = {fgsm: fgsm_by_hand, bi: bi_by_hand, llci: llci_by_hand}[attack]
    expected = oracle(classifier, images, labels, 5)
    torch.testing.assert_close(attack(classifier, images, labels, epsilon=5), expected, atol=1e-6, rtol=0)


@ALL
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_contexts_without_gradients(attack, context, classifier, images, labels) -> None:
    expected = attack(classifier, images, labels, epsilon=2)
    with context():
        assert torch.equal(attack(classifier, images.clone(), labels.clone(), epsilon=2), expected)


@ALL
def test_autocast(attack, classifier, images, labels) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adversarial = attack(classifier, images, labels, epsilon=2)
    assert adversarial.dtype == torch.float32


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int32], ids=str)
def test_dtypes(attack, dtype, label_dtype, classifier, images, labels) -> None:
    given = images.to(dtype)
    kept = given.clone()
    adversarial = attack(classifier, given, labels.to(label_dtype), epsilon=2)
    assert adversarial.dtype == torch.float32
    assert torch.equal(adversarial, attack(classifier, kept.float(), labels, epsilon=2))
    assert torch.equal(given, kept)


@ALL
def test_rounding_beyond_the_range_is_clipped(attack, classifier, images, labels) -> None:
    rounded = images * (1 + 2e-5) - 1e-5
    expected = attack(classifier, rounded.clamp(0, 1), labels, epsilon=2)
    assert torch.equal(attack(classifier, rounded, labels, epsilon=2), expected)
    assert expected.min() >= 0
    assert expected.max() <= 1


@ALL
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(attack, classes: int, images) -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 13, classes))
    labels = torch.arange(6) % classes
    oracle = {fgsm: fgsm_by_hand, bi: bi_by_hand, llci: llci_by_hand}[attack]
    expected = oracle(classifier, images, labels, 5)
    torch.testing.assert_close(attack(classifier, images, labels, epsilon=5), expected, atol=1e-6, rtol=0)


@ALL
def test_empty_batch(attack, classifier, images, labels) -> None:
    assert attack(classifier, images[:0], labels[:0], epsilon=2).shape == (0, 3, 14, 13)


@ALL
def test_silence(attack, classifier, images, labels, capfd, caplog) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        attack(classifier, images, labels, epsilon=2)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


GOOD, LABELS = torch.rand(2, 3, 8, 8), torch.tensor([0, 4])
BAD = {
    "no module": ({"classifier": lambda x: x}, TypeError, r"torch\.nn\.Module, got function"),
    "uint8": ({"images": (GOOD * 255).byte()}, TypeError, "divide uint8 images by 255"),
    "no batch axis": ({"images": GOOD[0]}, ValueError, "batch axis"),
    "normalised": ({"images": GOOD * 4 - 2}, ValueError, "already normalised"),
    "NaN": ({"images": GOOD / 0}, ValueError, "finite"),
    "labels of floats": ({"labels": LABELS.float()}, TypeError, "integers"),
    "labels in a list": ({"labels": [0, 4]}, TypeError, "got list"),
    "one-hot labels": ({"labels": torch.eye(5)[LABELS].long()}, ValueError, "one class an image"),
    "too few labels": ({"labels": LABELS[:1]}, ValueError, "one class an image"),
    "label too large": ({"labels": LABELS + 1}, ValueError, r"\[0, 5\).*from 1 to 5"),
    "label below zero": ({"labels": LABELS - 1}, ValueError, r"\[0, 5\).*from -1 to 3"),
    "epsilon in [0, 1]": ({"epsilon": 8 / 255}, ValueError, "write 8, not 8/255"),
    "epsilon zero": ({"epsilon": 0}, ValueError, r"\[1, 255\]"),
    "epsilon NaN": ({"epsilon": float("nan")}, ValueError, r"\[1, 255\]"),
    "epsilon a string": ({"epsilon": "2"}, TypeError, r"\[1, 255\]"),
    "batch_size zero": ({"batch_size": 0}, ValueError, "batch_size"),
    "features": ({"classifier": nn.Identity()}, ValueError, r"\(N, classes\).*got \(1, 3, 8, 8\)"),
    "one output": ({"classifier": nn.Sequential(nn.Flatten(), nn.Linear(192, 1))}, ValueError, "two classes"),
    "on no device of ART's": ({"classifier": nn.Linear(1, 1, device="meta")}, ValueError, "it is on meta"),
}


@ALL
@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_raise_before_the_attack(attack, changes, error, message, monkeypatch) -> None:
    for method in ("FastGradientMethod", "BasicIterativeMethod"):
        monkeypatch.setattr(kurakin, method, None)  # any work would raise something else
    arguments = {"classifier": network(), "images": GOOD, "labels": LABELS, "epsilon": 2} | changes
    with pytest.raises(error, match=message):
        attack(**arguments)


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x + 3 / 255, lambda x: x - 3 / 255, lambda x: x * np.nan],
    ids=["too far", "too far down", "NaN"],
)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_an_attack_out_of_bounds_is_not_returned(spoil: Callable, level: float, classifier, monkeypatch) -> None:
    monkeypatch.setattr(FastGradientMethod, "generate", lambda self, x, y: spoil(x))
    with pytest.raises(RuntimeError, match="defect"):
        fgsm(classifier, torch.full_like(GOOD, level), LABELS, epsilon=2)


@pytest.mark.parametrize(("level", "change"), [(1, 1 / 255), (0, -1 / 255)], ids=["above", "below"])
def test_an_attack_out_of_the_range_is_not_returned(level: int, change: float, classifier, monkeypatch) -> None:
    monkeypatch.setattr(FastGradientMethod, "generate", lambda self, x, y: x + np.float32(change))
    with pytest.raises(RuntimeError, match=f"went from {level + change:.6g} to {level + change:.6g}"):
        fgsm(classifier, torch.full_like(GOOD, level), LABELS, epsilon=2)


def test_an_attack_s_rounding_is_clipped(classifier, monkeypatch) -> None:
    monkeypatch.setattr(FastGradientMethod, "generate", lambda self, x, y: x + np.float32(5e-7))
    assert fgsm(classifier, torch.ones_like(GOOD), LABELS, epsilon=2).max() == 1


def test_noise_is_random_signs() -> None:
    images = torch.full((3, 3, 32, 32), 0.5)
    change = (noise(images, epsilon=4, seed=range(3)) - images) * 255
    assert change.abs() == pytest.approx(4, abs=1e-4)
    ups = (change > 0).float().mean(dim=(1, 2, 3))
    assert ((ups - 0.5).abs() < 5 * 0.5 / (3 * 32 * 32) ** 0.5).all()
    agreement = (change[0] * change[1] > 0).float().mean()
    assert abs(agreement - 0.5) < 5 * 0.5 / (3 * 32 * 32) ** 0.5


def test_noise_is_clipped_and_float32() -> None:
    noisy = noise(torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(8)[None, None, None], epsilon=10, seed=1)
    assert noisy.dtype == torch.float32
    assert noisy.min() == 0
    assert noisy.max() == 1
    assert noisy.unique().numel() == 4


def test_noise_depends_on_the_seed_alone(images) -> None:
    before = torch.get_rng_state()
    together = noise(images, epsilon=5, seed=range(6))
    assert torch.equal(noise(images[4:5], epsilon=5, seed=4)[0], together[4])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    first, second = noise(images, epsilon=5), noise(images, epsilon=5)
    torch.manual_seed(0)
    assert torch.equal(noise(images, epsilon=5), first)
    assert not torch.equal(first, second)


def test_noise_on_an_empty_batch(images) -> None:
    assert noise(images[:0], epsilon=5).shape == (0, 3, 14, 13)


@pytest.mark.parametrize(
    ("images", "epsilon", "seed", "error", "message"),
    [
        (GOOD * 255, 2, None, ValueError, "uint8 values"),
        (GOOD, 0.01, None, ValueError, "1/255"),
        (GOOD, 2, 0.5, TypeError, "seed"),
        (GOOD, 2, [1], ValueError, "1 seeds for 2 images"),
    ],
    ids=["range", "epsilon", "seed", "seeds"],
)
def test_bad_arguments_of_noise(images, epsilon, seed, error, message: str) -> None:
    with pytest.raises(error, match=message):
        noise(images, epsilon=epsilon, seed=seed)


def test_a_rounded_attack_is_the_attack_rounded(classifier, images, labels) -> None:
    plain, rounded = Attack("FGSM", 5), Attack("FGSM", 5, rounded=True)
    adversarial = plain(classifier, images, labels)
    assert not torch.equal(quantise(adversarial), adversarial)
    assert torch.equal(rounded(classifier, images, labels), quantise(adversarial))
    assert str(rounded) == "FGSM ε=5 in 8 bits"


def test_quantise_keeps_8_bit_images_in_the_ball(classifier, labels) -> None:
    pixels = torch.randint(256, (6, 3, 14, 13))
    images = pixels / 255
    assert torch.equal(quantise(images), images)
    adversarial = quantise(bi(classifier, images, labels, epsilon=5))
    assert ((adversarial * 255).round() - pixels).abs().max() == 5
    rounded = quantise(torch.rand(1, 3, 9, 9, dtype=torch.float64))
    assert rounded.dtype == torch.float64
    torch.testing.assert_close(rounded * 255, (rounded * 255).round())


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (GOOD.numpy(), TypeError, "got ndarray"),
        ((GOOD * 255).byte(), TypeError, "divide uint8 images by 255"),
        (GOOD[0], ValueError, "batch axis"),
        (GOOD * 255, ValueError, "divide by 255"),
        (GOOD / 0, ValueError, "finite"),
    ],
    ids=["no tensor", "uint8", "no batch axis", "range", "infinity"],
)
def test_bad_arguments_of_quantise(images, error, message: str) -> None:
    with pytest.raises(error, match=message):
        quantise(images)


def test_table_2_is_the_paper_s() -> None:
    rows = [("FGSM", 2), ("FGSM", 5), ("FGSM", 10), ("BI", 10), ("LLCI", 10)]
    assert [(attack.name, attack.epsilon) for attack in TABLE_2] == rows


@pytest.mark.parametrize(("name", "function"), [("FGSM", fgsm), ("BI", bi), ("LLCI", llci)])
def test_a_condition_runs_its_attack(name, function, classifier, images, labels) -> None:
    expected = function(classifier, images, labels, epsilon=5, batch_size=3)
    sizes = []
    classifier.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert torch.equal(Attack(name, 5)(classifier, images, labels, batch_size=3, seed=1), expected)
    assert max(sizes) == 3


def test_a_condition_runs_the_noise(classifier, images, labels) -> None:
    noisy = Attack("noise", 5)(classifier, images, labels, seed=range(6))
    assert torch.equal(noisy, noise(images, epsilon=5, seed=range(6)))


def test_conditions_are_values() -> None:
    attack = Attack("FGSM", 2)
    assert {attack: 1}[copy.copy(attack)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.epsilon = 3
    with pytest.raises(ValueError, match=r"one of \('noise', 'FGSM', 'BI', 'LLCI'\), got 'PGD'"):
        Attack("PGD", 2)
    with pytest.raises(ValueError, match="1/255"):
        Attack("FGSM", 0.03)


@pytest.mark.gpu
@ALL
def test_on_the_gpu(attack, images, labels) -> None:
    expected = attack(network(), images, labels, epsilon=5)
    adversarial = attack(network().cuda(), images, labels, epsilon=5)
    assert adversarial.device == images.device
    assert ((adversarial - expected).abs() > 1e-6).float().mean() < 0.02
    assert attack(network().cuda(), images.cuda(), labels.cuda(), epsilon=5).is_cuda


def test_noise_is_the_same_whatever_the_default_dtype() -> None:
    images = torch.rand(2, 3, 8, 8)
    expected = noise(images, epsilon=8, seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        found = noise(images, epsilon=8, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
