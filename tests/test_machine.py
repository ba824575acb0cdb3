"""The machine in words, and the memory that a computation takes there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dipdefense import machine
from dipdefense.machine import PeakMemory, hardware

CPU = torch.device("cpu")


def test_a_processor_is_named_with_its_threads() -> None:
    assert hardware(CPU).endswith(", 1 threads")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_counts_what_was_freed_again_and_not_what_was_there_before() -> None:
    before = torch.ones(2**25)  # 128 MiB
    peak = PeakMemory(CPU)
    if peak.grown() is None:
        pytest.skip("the system does not reset its count")
    torch.ones(2**24)
    grown = peak.grown()
    assert grown is not None
    assert 2**25 < grown < 2**27
    assert before.numel() == 2**25


def test_a_process_whose_name_is_cut_within_a_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_bytes("Name:\tpurifié".encode()[:-1] + b"\nVmRSS:\t 3 kB\n")
    monkeypatch.setattr(machine, "_STATUS", status)
    assert machine._bytes("VmRSS") == 3072


def test_without_a_count_that_starts_anew_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, text: str) -> int:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", refused)
    assert PeakMemory(CPU).grown() is None
