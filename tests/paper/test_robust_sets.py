"""Constructed sets: near features, small perturbations, fixed by seed and image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from measuring import TinyImages, tiny_classifier
from torch import nn

from dipdefense.paper.robust_sets import FeaturesOf, TowardsLabels, match_features, penultimate


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    ).eval()


@pytest.fixture
def data(network: nn.Module) -> TinyImages:
    return TinyImages(network, 12)


def test_the_penultimate_features_are_what_the_last_linear_layer_gets(network: nn.Module, data: TinyImages) -> None:
    features = penultimate(network)(data.pixels)
    assert torch.equal(features, network[:-1](data.pixels))
    assert not network[-1]._forward_pre_hooks
    with pytest.raises(ValueError, match="has none"):
        penultimate(network[:3])


def test_the_feature_distance_falls_image_by_image(network: nn.Module, data: TinyImages) -> None:
    features = penultimate(network)
    targets, starts = data.pixels[:4], data.pixels[4:8]
    distance = [(features(starts) - features(targets)).norm(dim=1)]
    for steps in (5, 40):
        found = match_features(features, targets, starts, steps=steps, step=0.05)
        distance.append((features(found) - features(targets)).norm(dim=1))
        assert 0 <= found.min() <= found.max() <= 1
        assert ((found - starts).flatten(1).norm(dim=1) <= steps * 0.05 + 1e-4).all()
    assert (distance[1] < distance[0]).all()
    assert (distance[2] < distance[1]).all()
    assert distance[2].sum() < 0.7 * distance[0].sum()
    alone = match_features(features, targets[:1], starts[:1], steps=5, step=0.05)
    both = match_features(features, targets, starts, steps=5, step=0.05)[:1]
    torch.testing.assert_close(alone, both, atol=1e-5, rtol=0)


def test_a_set_of_features_is_the_same_in_any_batch_and_never_begins_at_the_image(
    network: nn.Module, data: TinyImages
) -> None:
    condition = FeaturesOf(network, data, seed=3, steps=0)
    images, labels = data.pixels, torch.tensor(data.labels)
    found = condition(network, images, labels, batch_size=5, seed=[0] * 12)
    assert torch.equal(found, condition(network, images, labels, batch_size=1, seed=[1] * 12))
    backwards = condition(network, images.flip(0), labels.flip(0), batch_size=4, seed=[0] * 12)
    assert torch.equal(found, backwards.flip(0))
    assert not torch.equal(found, replace(condition, seed=4)(network, images, labels, batch_size=5, seed=[]))
    for image, other in zip(images, found, strict=True):
        assert not torch.equal(image, other)
        assert any(torch.equal(other, one) for one in images)


def test_there_must_be_another_image(network: nn.Module) -> None:
    data = TinyImages(network, 1)
    with pytest.raises(ValueError, match="none beside the image itself"):
        FeaturesOf(network, data)(network, data.pixels, torch.tensor(data.labels), batch_size=1, seed=[0])


def test_images_are_moved_to_their_labels_within_the_ball(data: TinyImages) -> None:
    network = tiny_classifier()
    labels = (torch.tensor(data.labels) + 1) % 5
    condition = TowardsLabels(network, epsilon=3.0)
    found = condition(network, data.pixels, labels, batch_size=5, seed=[0] * 12)
    before, after = (network(images).softmax(dim=1)[range(12), labels] for images in (data.pixels, found))
    assert (after > before).all()
    assert (network(found).argmax(dim=1) == labels).float().mean() > 0.6
    assert ((found - data.pixels).flatten(1).norm(dim=1) <= 3.0 + 1e-4).all()
    assert torch.equal(found, condition(network, data.pixels, labels, batch_size=5, seed=[7] * 12))
