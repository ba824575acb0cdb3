"""The README's verdict and its row that matters, from made-up adaptive records."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping

import pytest
from conftest import ROOT
from measuring import CIRCUMSTANCES, CONFIGURATION, made_up, record

from dipdefense import DIPConfig
from dipdefense.evaluation import AdaptiveReport, Run

sys.path.insert(0, str(ROOT / "benchmarks"))

import readme
from readme_adaptive import attacked, verdict

PAPER = DIPConfig.paper()
ATTACKS = {"transfer": {"steps": 20}, "bpda": {"steps": 10}, "trajectory": {"steps": 10}}


def adaptive(
    correct: Mapping[str, int],
    *,
    level: str = "quick",
    classifier: str = "efficientnet-lite0",
    budget: int = 500,
    config: DIPConfig = PAPER,
) -> AdaptiveReport:
    """A report on ten images, of which each condition leaves so many correct.

    That is so behind DIP; without a defence every attacked image is classified wrongly.
    """
    records = [
        record(
            f"{position}.png", condition=condition, defence=defence, budget=budget if defence == "dip" else 0,
            position=position, prediction=3 if position < left else 4, session=1,
        )
        for condition, kept in correct.items()
        for defence, left in (("none", kept if condition == "clean" else 0), ("dip", kept))
        if defence == "dip" or "@" not in condition
        for position in range(10)
    ]  # fmt: skip
    records += [
        dataclasses.replace(each, defence="dip-known-seed")
        for each in records
        if each.defence == "dip" and "known-seed" in each.condition
    ]
    configuration = CONFIGURATION | {
        "classifier": classifier,
        "dip": json.loads(json.dumps(config.to_json())),
        "adaptive": {"level": level, "attacks": ATTACKS, "controls": {}},
    }
    return AdaptiveReport(Run(configuration, tuple(records), {1: CIRCUMSTANCES}))


FALLEN = {"clean": 8, "transfer-8": 6, "bpda-8@dip-500": 2, "trajectory-8@dip-500": 0}
STANDING = {"clean": 8, "transfer-8": 6, "bpda-8@dip-500": 5, "trajectory-8@dip-500": 7}


def test_nothing_left_is_said_so() -> None:
    text = verdict([adaptive(FALLEN)])
    head = "**Attackers who know the defence lower its accuracy from 80 to 0 % (ε = 8, efficientnet-lite0): "
    assert text.startswith(head + "next to nothing is left.** The attacks are")
    line = text.splitlines()[-1]
    assert line.startswith("- DIP 500")
    assert (
        'level "quick" (transfer, BPDA, trajectory), n = 10, ε = 8: **0.0 [0.0, 27.8] %** under the worst case' in line
    )
    assert "; 0.0 [0.0, 27.8] % under trajectory alone; " in line
    assert "; 60.0 [31.3, 83.2] % under a defence-unaware transfer attack; 80.0 [" in line
    assert "stronger ones can only leave less" in text


def test_something_left_is_a_figure_and_no_robustness() -> None:
    text = verdict([adaptive(STANDING)])
    assert "nothing" not in text
    assert text.startswith(
        "**Attackers who know the defence lower its accuracy from 80 to 50 % (ε = 8, efficientnet-lite0).** The"
    )
    assert "**50.0 [23.7, 76.3] %** under the worst case of these attacks, 50.0 % by majority vote" in text
    assert "robust" not in text
    assert verdict([]) == "Attackers who know the defence have not been measured yet."


def test_what_fails_on_clean_images_has_a_line_and_no_headline() -> None:
    failing = adaptive({"clean": 1, "transfer-8": 1, "bpda-8@dip-500": 1}, classifier="other")
    text = verdict([failing, adaptive(STANDING)])
    assert text.startswith(
        "**Attackers who know the defence lower its accuracy from 80 to 50 % (ε = 8, efficientnet-lite0).** The"
    )
    assert "other, level" in text
    assert verdict([failing]).startswith("**No network here works unattacked.** The attacks are reduced")


def test_the_strongest_record_of_each_classifier_is_named() -> None:
    text = verdict([adaptive(STANDING), adaptive(FALLEN, level="standard"), adaptive(STANDING, classifier="other")])
    assert "from 80 to 0 % (ε = 8, efficientnet-lite0) and from 80 to 50 % (ε = 8, other).**" in text
    assert text.count("\n- DIP 500") == 3


def test_the_tables_have_the_strongest_attack_beside_the_defence_unaware_one() -> None:
    text = attacked(adaptive(FALLEN))
    assert "| defence-unaware (transfer), ε=8 | 0.0 [0.0, 27.8] | 60.0 [31.3, 83.2] |" in text
    assert "| **strongest attack found**, ε=8 | 0.0 [0.0, 27.8] | 0.0 [0.0, 27.8] |" in text
    assert "REDUCED ATTACK, no robust accuracy." in text
    assert "REDUCED" not in attacked(adaptive(FALLEN, level="full"))


def test_the_tables_tell_what_a_known_seed_leaves_for_the_reconstruction() -> None:
    text = attacked(adaptive(FALLEN | {"known-seed-8@dip-500": 3}))
    assert text.endswith(" An attacker who has DIP 500's seed leaves 30.0 [10.8, 60.3] at ε=8.")
    assert "seed" not in attacked(adaptive(FALLEN))


def test_the_verdict_names_the_network() -> None:
    assert "- DIP 500, 128 channels, efficientnet-lite0, " in verdict([adaptive(FALLEN)])
    half = verdict([adaptive(FALLEN, config=DIPConfig.half_size())])
    assert "- DIP 500, 32 channels at 1/2 of the images' height and width, efficientnet-lite0, " in half


@pytest.mark.parametrize(
    ("classifier", "budget", "config", "rows"),
    [
        ("efficientnet-lite0", 750, PAPER, 1),
        ("another", 750, PAPER, 0),
        ("efficientnet-lite0", 7, PAPER, 0),
        ("efficientnet-lite0", 750, DIPConfig.compact(), 0),
    ],
)
def test_the_first_table_gains_the_row_of_its_own_classifier_network_and_budget_alone(
    classifier: str, budget: int, config: DIPConfig, rows: int
) -> None:
    attacks = {name.replace("500", str(budget)): kept for name, kept in FALLEN.items()}
    report = adaptive(attacks, budget=budget, config=config)
    text = readme.brief(made_up(classifier=classifier, budgets=(750, 1000, 2000)), report)
    found = [line for line in text.splitlines() if line.startswith("| **strongest attack found, ε=8** (n = 10)")]
    assert len(found) == rows
    header = text.splitlines()[0]
    for line in found:
        assert line.count("|") == header.count("|")
        assert "| 0.0 [0.0, 27.8] | – | – | 0.0 [0.0, 27.8] | – |" in line
