"""``pytest -m integration`` runs these tests, which need further libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dipdefense import DIPConfig, DIPPurifier

CLASSES = 10


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them all: they are made for an environment with the extra "integration"."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([3, 7])


@pytest.fixture
def purifier(tiny: DIPConfig) -> DIPPurifier:
    return DIPPurifier(2, config=tiny, seed=0)


@pytest.fixture
def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(8 * 16, CLASSES),
    ).eval()  # fmt: skip


@pytest.fixture
def defended(purifier: DIPPurifier, classifier: nn.Module) -> nn.Module:
    return nn.Sequential(purifier, classifier).eval()
