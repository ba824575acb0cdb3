"""Attack libraries on a defended model: usable gradients, images in the ball."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dipdefense.art import DIPPreprocessor, RandomizationPreprocessor

EPSILON = 8 / 255


def check(attacked: Tensor, images: Tensor) -> None:
    assert attacked.shape == images.shape
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert 0 < (attacked - images).abs().max() <= EPSILON + 1e-6


def art_classifier(classifier: nn.Module, defences: list[object]) -> object:
    estimators = importlib.import_module("art.estimators.classification")
    return estimators.PyTorchClassifier(
        classifier, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=10, clip_values=(0.0, 1.0),
        preprocessing_defences=defences,
    )  # fmt: skip


def test_art_attack(classifier: nn.Module, tiny, images: Tensor, labels: Tensor) -> None:
    evasion = importlib.import_module("art.attacks.evasion")
    estimator = art_classifier(classifier, [DIPPreprocessor(2, config=tiny, seed=0)])
    attack = evasion.ProjectedGradientDescent(estimator, eps=EPSILON, eps_step=0.01, max_iter=2, verbose=False)
    check(torch.from_numpy(attack.generate(images.numpy(), labels.numpy())), images)


def test_art_preprocessors_in_combination(classifier: nn.Module, tiny, images: Tensor) -> None:
    spatial = importlib.import_module("art.defences.preprocessor")
    both = [DIPPreprocessor(2, config=tiny, seed=0), RandomizationPreprocessor(seed=0)]
    assert art_classifier(classifier, both).predict(images.numpy()).shape == (2, 10)
    # A NumPy preprocessor beside a torch one is the combination that ART itself cannot differentiate.
    mixed = art_classifier(classifier, [*both[:1], spatial.FeatureSqueezing((0.0, 1.0), bit_depth=4)])
    with pytest.raises(NotImplementedError):
        mixed.loss_gradient(images.numpy(), np.array([3, 7]))


def test_art_black_box(defended: nn.Module, images: Tensor) -> None:
    estimators = importlib.import_module("art.estimators.classification")
    evasion = importlib.import_module("art.attacks.evasion")

    def predict(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return defended(torch.from_numpy(batch.astype(np.float32))).softmax(dim=1).numpy()

    estimator = estimators.BlackBoxClassifier(predict, input_shape=(3, 32, 32), nb_classes=10, clip_values=(0.0, 1.0))
    attack = evasion.HopSkipJump(estimator, norm=np.inf, max_iter=1, max_eval=10, init_eval=5, verbose=False)
    attacked = torch.from_numpy(attack.generate(images.numpy()))
    assert attacked.shape == images.shape
    assert attacked.isfinite().all()


def test_foolbox(defended: nn.Module, images: Tensor, labels: Tensor) -> None:
    foolbox = importlib.import_module("foolbox")
    model = foolbox.PyTorchModel(defended, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(steps=2)
    check(attack(model, images, labels, epsilons=EPSILON)[1], images)


def test_torchattacks(defended: nn.Module, images: Tensor, labels: Tensor) -> None:
    torchattacks = importlib.import_module("torchattacks")
    check(torchattacks.PGD(defended, eps=EPSILON, steps=2)(images, labels), images)


def test_cleverhans(defended: nn.Module, images: Tensor) -> None:
    module = importlib.import_module("cleverhans.torch.attacks.projected_gradient_descent")
    attacked = module.projected_gradient_descent(
        defended, images, EPSILON, EPSILON / 4, 2, np.inf, clip_min=0.0, clip_max=1.0
    )
    check(attacked.detach(), images)


def test_autoattack(defended: nn.Module, images: Tensor) -> None:
    autoattack = importlib.import_module("pyautoattack")
    labels = defended(images).argmax(dim=1)
    adversary = autoattack.AutoAttack(defended, eps=EPSILON, version="custom", attacks=["apgd-ce"], seed=0)
    adversary.apgd.n_iter, adversary.apgd.n_restarts = 3, 1
    attacked, *_ = adversary.run_standard_evaluation(images, labels)
    assert (attacked - images).abs().max() <= EPSILON + 1e-6
