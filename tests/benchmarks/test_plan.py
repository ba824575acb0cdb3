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


def test_a_record_that_cannot_be_read_is_refused_in_a_line(monkeypatch, tmp_path, capsys) -> None:
    broken = tmp_path / "table2.jsonl"
    broken.write_text("{")
    for path, told in ((tmp_path / "none.jsonl", "none.jsonl"), (broken, "line 1: it is not JSON")):
        monkeypatch.setattr(sys, "argv", ["plan.py", str(path)])
        with pytest.raises(SystemExit):
            main()
        assert told in capsys.readouterr().err


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


def test_what_it_took_stands_beside_the_plan_of_the_first_images(monkeypatch, capsys) -> None:
    """DIP is right on the last eight of ten images, randomisation on the first two."""
    records = [
        record(f"{n}", condition=c, defence=d, budget=b, position=n, label=1, prediction=int(right))
        for n in range(10)
        for c in ("clean", "fgsm-5")
        for d, b, right in (("none", 0, 0), ("randomisation", 1, n < 2), ("dip", 500, n >= 2))
    ]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in plan(Run(CONFIGURATION, tuple(records), {}), images=4)
    ]
    assert lines[0][-1] == "taken, of 10"
    rows = {(row[1], row[2]): row[3:] for row in lines[2:]}
    undefended, randomised = rows["FGSM ε=5", "DIP 500 : no defence"], rows["FGSM ε=5", "DIP 500 : randomisation ×1"]
    assert undefended[:2] == ["4", "2 : 0"]
    # Six of six are decided by p = 0.03, which the eighth image brings about; 8 : 2 is not.
    assert undefended[-1] == "8"
    assert randomised[:2] == ["4", "2 : 2"]
    assert randomised[-1] == "not decided"
    assert rows["clean", "no defence : DIP 500"][-1] == "8, the other way"


def test_where_split_and_accuracy_disagree_nothing_is_decided() -> None:
    """With the first seed 6 : 0, over both seeds equal."""
    records = [
        record(f"{n}", condition=c, defence=d, budget=b, position=n, label=1, prediction=int(right), seed=seed)
        for n in range(6)
        for c in ("clean", "fgsm-5")
        for seed in (0, 1)
        for d, b, right in (("none", 0, seed), ("dip", 500, not seed))
    ]
    rows = [line for line in plan(Run(CONFIGURATION, tuple(records), {}), images=6) if "FGSM" in line]
    assert rows
    assert all("other way" not in line for line in rows)


def test_a_clear_difference_needs_fewer_images_than_a_slight_one() -> None:
    run = read_export(ROOT / "benchmarks" / "results" / "table2-reconstruction" / "table2.jsonl")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in plan(run)][2:]
    needed = {(row[1], row[2]): row[6] for row in rows}
    clear, slight = needed["BI ε=10", "DIP 1000 : no defence"], needed["clean", "no defence : DIP 1000"]
    assert int(clear.split()[2]) < int(slight.split()[0])
    assert all(float(row[7]) > 0 for row in rows if row[7] != "–")
