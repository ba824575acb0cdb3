"""L2 PGD reaches its goal in the ball and in range; the classifier is unchanged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from measuring import tiny_classifier
from torch import Tensor

from dipdefense.attacks import pgd_l2
from dipdefense.attacks.l2 import unit

LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.fixture
def images() -> Tensor:
    # With pixels at both ends of the range, where a step may not go on.
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(1.4).sub(0.2).clamp(0, 1)


def distances(moved: Tensor, images: Tensor) -> Tensor:
    return (moved - images).flatten(1).norm(dim=1)


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("targeted", [False, True])
def test_it_moves_the_loss_and_stays_in_the_ball(images: Tensor, targeted: bool, seed: int | None) -> None:
    classifier = tiny_classifier()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    moved = pgd_l2(classifier, images, LABELS, epsilon=0.5, step=0.1, steps=20, targeted=targeted, generator=generator)
    before, after = (F.cross_entropy(classifier(x), LABELS, reduction="none") for x in (images, moved))
    assert ((after < before) if targeted else (after > before)).all()
    assert (distances(moved, images) <= 0.5 + 1e-5).all()
    assert distances(moved, images).max() > 0.4
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not moved.requires_grad


def test_images_are_attacked_each_by_itself_without_gradients_around(images: Tensor) -> None:
    classifier = tiny_classifier()
    settings = {"epsilon": 0.5, "step": 0.1, "steps": 5}
    with torch.no_grad():
        together = pgd_l2(classifier, images, LABELS, **settings)
    alone = [pgd_l2(classifier, images[[i]], LABELS[[i]], **settings) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_images_and_labels_may_come_from_inference_mode(images: Tensor) -> None:
    classifier, settings = tiny_classifier(), {"epsilon": 0.5, "step": 0.1, "steps": 3}
    with torch.inference_mode():
        found = pgd_l2(classifier, images.clone(), LABELS.clone(), **settings)
    assert torch.equal(found, pgd_l2(classifier, images, LABELS, **settings))


def test_random_points_are_the_same_whatever_the_default_device(images: Tensor) -> None:
    classifier, settings = tiny_classifier(), {"epsilon": 0.5, "step": 0.1, "steps": 1}
    expected = pgd_l2(classifier, images, LABELS, **settings, generator=torch.Generator().manual_seed(5))
    with torch.device("meta"):
        found = pgd_l2(classifier, images, LABELS, **settings, generator=torch.Generator().manual_seed(5))
    assert torch.equal(found, expected)


def test_an_image_without_a_gradient_stays(images: Tensor) -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 5))
    torch.nn.init.zeros_(flat[1].weight)
    torch.testing.assert_close(pgd_l2(flat, images, LABELS, epsilon=0.5, step=0.1, steps=3), images)


def test_a_tiny_gradient_is_a_whole_step(images: Tensor) -> None:
    torch.testing.assert_close(unit(images * 1e-30), unit(images))
    torch.testing.assert_close(unit(images).flatten(1).norm(dim=1), torch.ones(len(images)))


def test_one_images_gradient_is_no_measure_for_anothers(images: Tensor) -> None:
    sizes = torch.tensor([1e-30, 1e-15, 1.0, 1e15, 1e30, 1e-30])
    torch.testing.assert_close(unit(images * sizes[:, None, None, None]), unit(images))


@pytest.mark.parametrize("change", [{"epsilon": 0}, {"epsilon": float("nan")}, {"step": -0.1}, {"steps": 0}], ids=str)
def test_numbers_that_mean_nothing_are_refused(images: Tensor, change: dict[str, float]) -> None:
    settings = {"epsilon": 0.5, "step": 0.1, "steps": 3} | change
    with pytest.raises(ValueError, match="epsilon and step must be positive and steps at least 1"):
        pgd_l2(tiny_classifier(), images, LABELS, **settings)
