"""The plan before a long measurement."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT
from measuring import CONFIGURATION, record

from dipdefense.evaluation import Run, read_export

sys.path.insert(0, str(ROOT / "benchmarks"))

from plan import main, plan


def test_a_record_without_the_reconstruction_is_refused(monkeypatch, capsys) -> None:
    record = ROOT / "benchmarks" / "results" / "table2-baselines" / "table2.jsonl"
    monkeypatch.setattr(sys, "argv", ["plan.py", str(record)])
    with pytest.raises(SystemExit):
        main()
    assert "has no outcomes of the reconstruction" in capsys.readouterr().err


def test_a_split_of_all_images_can_be_planned_for() -> None:
    """Every image right in one way alone: one more than that there is not."""
    records = [
        record(
            f"{place}", condition=condition, defence=defence, budget=budget, position=place, label=1, prediction=right
        )
        for place in range(2)
        for condition in ("clean", "fgsm-5")
        for defence, budget, right in (("none", 0, 0), ("randomisation", 1, 0), ("dip", 500, 1))
    ]
    rows = [line for line in plan(Run(CONFIGURATION, tuple(records), {})) if "| 2 : 0 |" in line]
    assert rows


def test_a_clear_difference_needs_fewer_images_than_a_slight_one() -> None:
    run = read_export(ROOT / "benchmarks" / "results" / "table2-reconstruction" / "table2.jsonl")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in plan(run)][2:]
    needed = {(row[1], row[2]): row[6] for row in rows}
    clear, slight = needed["BI ε=10", "DIP 1000 : no defence"], needed["clean", "no defence : DIP 1000"]
    assert int(clear.split()[2]) < int(slight.split()[0])
    assert all(float(row[7]) > 0 for row in rows if row[7] != "–")
