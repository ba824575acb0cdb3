"""Speeds by hardware: the newest record of a device, at its fastest batch size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from speed import hardware


def record(device: str, started: str, **seconds: float) -> dict[str, Any]:
    """A record with this library's seconds by batch size, such as ``batch_4=1.5``."""
    results = [
        {
            "setting": "32×32", "contender": "dipdefense, fp32", "precision": "fp32", "batch": int(name[6:]),
            "seconds": {"median": value, "low": value, "high": value}, "speedup": {"median": 2.0},
            "peak_memory_mib": None,
        }
        for name, value in seconds.items()
    ]  # fmt: skip
    results.append({"setting": "32×32", "contender": "dipdefense, bf16", "skipped": "no bf16 here"})
    circumstances = {"hardware": device, "started": started, "commit": "0" * 40, "versions": {"torch": "2.14.1"}}
    return {"circumstances": circumstances, "results": results}


RECORDS = [
    record("B", "2026-02", batch_1=9.0),
    record("A", "2026-03", batch_1=4.0, batch_4=3.0, batch_16=3.5),
    record("A", "2026-01", batch_1=1.0),
]


def test_rows_are_by_time_and_leave_out_what_was_not_timed() -> None:
    found = list(hardware.rows(RECORDS))
    assert [row["started"] for row in found] == ["2026-01", "2026-02", "2026-03", "2026-03", "2026-03"]
    assert len(hardware.as_csv(found).splitlines()) == 6


@pytest.mark.parametrize("order", [RECORDS, RECORDS[::-1]], ids=["as made", "reversed"])
def test_the_table_has_the_newest_record_at_its_fastest(order: list[dict[str, Any]]) -> None:
    lines = hardware.as_markdown(hardware.rows(order)).splitlines()[2:]
    assert sorted(lines) == [
        "| A | 2.14.1 | 32×32 | dipdefense, fp32 | 4 | 3 | 3 | 3 | 2.00 |",
        "| B | 2.14.1 | 32×32 | dipdefense, fp32 | 1 | 9 | 9 | 9 | 2.00 |",
    ]
