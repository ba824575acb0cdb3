from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dipdefense import DIPConfig
from dipdefense.native import loading
from dipdefense.native.library import Kernels

sys.path.insert(0, str(Path(__file__).parent))

# The tests' tensors are tiny: a second thread costs more than it brings, and on a busy machine far more.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(20190711)
    # References are in fp32 and by torch's operators, and "auto" would follow the machine that runs the tests.
    monkeypatch.setattr("dipdefense.processor.features", frozenset)
    monkeypatch.setenv("DIPDEFENSE_NATIVE", "0")


@pytest.fixture(scope="session")
def kernels_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the kernels are compiled once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch, kernels_cache: Path) -> Kernels:
    """The compiled kernels, compiled once for all tests."""
    monkeypatch.delenv("DIPDEFENSE_NATIVE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(kernels_cache))
    kernels, reason = loading.loaded()
    if kernels is None:
        # Kernels that do not compile, or that are wrong, must not pass as a missing compiler.
        (pytest.skip if reason.startswith("there is no C++ compiler") else pytest.fail)(reason)
    return kernels


@pytest.fixture
def tiny() -> DIPConfig:
    """A network fitted in milliseconds, with every part that the paper's has."""
    return DIPConfig(scales=2, channels=6, skip_channels=2, input_channels=4)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images for measuring, beside the checkout; no part of the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the measuring images in ../shared/data")
    return folder
