"""Asking for a backend: what is refused, and what is said.

The backends' own tests are in test_kernels_iteration and test_graphs.
"""

from __future__ import annotations

import pickle
import sys

import pytest
import torch

from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.checks import Request, check_backend
from dipdefense.engine.fitting import Fitting

GOOD = torch.rand(2, 3, 32, 32)


def test_an_unknown_backend() -> None:
    with pytest.raises(
        ValueError, match='backend must be "auto", "torch", "native", "cudagraphs" or "triton", got \'cuda\''
    ):
        reconstruct(GOOD, budgets=(1,), backend="cuda")
    with pytest.raises(ValueError, match='backend must be "auto", "torch", "native", "cudagraphs" or "triton"'):
        DIPPurifier(backend="cuda")


@pytest.mark.parametrize("call", [reconstruct, DIPPurifier(2, backend="cudagraphs").reconstruct], ids=["", "purifier"])
def test_a_graph_needs_a_gpu(call, monkeypatch) -> None:
    monkeypatch.setattr("dipdefense.engine.fitting.SkipNets", None)
    options = {"backend": "cudagraphs"} if call is reconstruct else {}
    message = (
        r'"cudagraphs" needs the images on an NVIDIA GPU, got images on cpu; move them there \(images\.to\("cuda"\)\)'
    )
    with pytest.raises(ValueError, match=message):
        call(GOOD, budgets=(1,), **options)


MISSING = {
    "no Triton": ({"find_spec": None}, r"Triton, which is not installed; install it \(pip install triton\) or use"),
    "no GPU": ({}, r'on an NVIDIA GPU, got images on cpu; move them there \(images\.to\("cuda"\)\) or use backend="to'),
}


@pytest.mark.parametrize(("changes", "message"), MISSING.values(), ids=MISSING)
@pytest.mark.parametrize("call", [reconstruct, DIPPurifier(2, backend="triton").reconstruct], ids=["", "purifier"])
def test_where_the_kernels_do_not_run_it_says_so_before_any_work(call, changes, message, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if changes else object())
    monkeypatch.setattr("dipdefense.engine.fitting.SkipNets", None)  # any work would raise something else
    options = {"backend": "triton"} if call is reconstruct else {}
    with pytest.raises(ValueError, match=message):
        call(GOOD, budgets=(1,), **options)


def test_an_old_gpu_is_refused(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or later, and cuda:0 has 7\.5; use backend"):
        check_backend("triton", torch.device("cuda:0"))


def test_the_purifier_carries_its_backend() -> None:
    purifier = pickle.loads(pickle.dumps(DIPPurifier(backend="triton")))
    assert purifier.backend == "triton"
    assert "backend='triton'" in repr(purifier)
    assert DIPPurifier().backend == "auto"


def test_the_purifier_passes_its_backend_on(tiny: DIPConfig, monkeypatch) -> None:
    monkeypatch.setattr("dipdefense.checks.check_backend", lambda *_: None)
    asked = []

    def by_torch(request: Request, backend: str) -> Fitting:
        asked.append(backend)
        return Fitting(request, "torch")

    monkeypatch.setattr(sys.modules["dipdefense.reconstruct"], "Fitting", by_torch)
    DIPPurifier(1, config=tiny, backend="triton", batch_size=1)(GOOD)
    assert asked == ["triton", "triton"]
