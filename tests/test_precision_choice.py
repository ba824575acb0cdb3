"""precision="auto": decided by what the device has, and explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dipdefense import DIPConfig, reconstruct
from dipdefense.checks import cpu_has_tiles, explain, operand_dtype
from dipdefense.processor import features

CPU = torch.device("cpu")
TILES = "processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n\nprocessor\t: 1\nflags\t\t: fpu\n"
NO_TILES = "processor\t: 0\nflags\t\t: fpu avx512_bf16\n"


@pytest.fixture
def cpu(monkeypatch):
    """The processor that /proc/cpuinfo describes."""

    def pretend(text: str) -> None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
        monkeypatch.setattr("dipdefense.processor.features", features)
        features.cache_clear()

    yield pretend
    monkeypatch.undo()
    features.cache_clear()


@pytest.mark.parametrize(("text", "dtype"), [(TILES, torch.bfloat16), (NO_TILES, torch.float32), ("", torch.float32)])
def test_a_cpu_takes_bf16_where_it_has_tiles(cpu, text: str, dtype: torch.dtype) -> None:
    cpu(text)
    assert operand_dtype("auto", CPU) == dtype
    assert operand_dtype("fp32", CPU) == torch.float32
    assert operand_dtype("bf16", CPU) == torch.bfloat16
    assert explain(CPU)["precision"].startswith("bf16: the CPU multiplies" if text == TILES else "fp32: the CPU has no")


def test_tiles_that_onednn_may_not_use_do_not_count(cpu, monkeypatch) -> None:
    cpu(TILES)
    for value, expected in {"AVX512_CORE_BF16": False, "avx512_core_amx": True, "ALL": True, "DEFAULT": True}.items():
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", value)
        assert cpu_has_tiles() is expected


def test_a_run_follows_it(cpu, tiny: DIPConfig) -> None:
    images, runs = torch.rand(1, 3, 32, 32), {}
    for name, text in {"tiles": TILES, "no tiles": NO_TILES}.items():
        cpu(text)
        runs[name] = reconstruct(images, budgets=(2,), config=tiny, seed=0).losses
    plain, half = (
        reconstruct(images, budgets=(2,), config=tiny, seed=0, precision=precision).losses
        for precision in ("fp32", "bf16")
    )
    assert torch.equal(runs["no tiles"], plain)
    assert torch.equal(runs["tiles"], half)
    assert not torch.equal(plain, half)


@pytest.mark.parametrize("current", [0, 1])
def test_each_gpu_of_a_machine_is_judged_by_itself(current: int, monkeypatch) -> None:
    capabilities = {0: (7, 5), 1: (8, 6)}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: capabilities[current] >= (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    old, new = torch.device("cuda:0"), torch.device("cuda:1")
    assert operand_dtype("auto", old) == torch.float32
    assert operand_dtype("auto", new) == operand_dtype("bf16", new) == torch.bfloat16
    with pytest.raises(ValueError, match='cuda:0 has no bf16 arithmetic; use precision="fp32" or "auto"'):
        operand_dtype("bf16", old)


def test_other_reasons_are_given() -> None:
    assert explain(CPU, precision="bf16", backend="torch") == {
        "precision": "bf16: asked for.",
        "backend": "torch: asked for.",
    }
    assert explain(CPU)["backend"] == (
        'torch: the same on every CPU. "native" is not there: DIPDEFENSE_NATIVE=0 switches the compiled kernels off.'
    )
    with pytest.raises(ValueError, match="NVIDIA GPU"):
        explain(CPU, backend="cudagraphs")


def test_a_gpu_that_is_not_there_is_named(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device must be one that this machine has, got 'cuda:0'"):
        explain("cuda:0")
