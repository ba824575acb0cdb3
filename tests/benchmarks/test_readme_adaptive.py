"""The README's verdict and its tables, from made-up adaptive records."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping

from conftest import ROOT
from measuring import CIRCUMSTANCES, CONFIGURATION, record

from dipdefense import DIPConfig
from dipdefense.evaluation import AdaptiveReport, Run

sys.path.insert(0, str(ROOT / "benchmarks"))

from readme_adaptive import attacked, strongest, verdict

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
    assert text.startswith(
        "**Attackers who know the defence lower its accuracy from 80 to 0 % [0, 28] (ε = 8, efficientnet-lite0; "
        "0 % by majority vote).** The attacks are"
    )
    assert "stronger ones can only leave less" in text


def test_the_verdict_has_a_table_of_the_records() -> None:
    text = strongest([adaptive(FALLEN), adaptive({"clean": 1, "bpda-8@dip-500": 1}, level="full", classifier="other")])
    first, second = text.splitlines()[2:4]
    assert first == (
        "| DIP 500, 128 channels, efficientnet-lite0 | `quick`, 3 attacks | 10 | 8 | 80.0 [49.0, 94.3] "
        "| 60.0 [31.3, 83.2] | **0.0 [0.0, 27.8]** | 0.0 |"
    )
    assert second.startswith("| DIP 500, 128 channels, other | `full`, 1 attack | 10 | 8 | 10.0 ")
    assert "| – | **10.0 " in second
    assert "REDUCED ATTACKS, no robust accuracy." in text
    assert "REDUCED" not in strongest([adaptive(FALLEN, level="full")])


def test_something_left_is_a_figure_and_no_robustness() -> None:
    text = verdict([adaptive(STANDING)])
    assert text.startswith(
        "**Attackers who know the defence lower its accuracy from 80 to 50 % [24, 76] (ε = 8, efficientnet-lite0; "
        "50 % by majority vote).** The"
    )
    assert "robust" not in text
    assert verdict([]) == "Attackers who know the defence have not been measured yet."


def test_what_fails_on_clean_images_has_a_row_and_no_headline() -> None:
    failing = adaptive({"clean": 1, "transfer-8": 1, "bpda-8@dip-500": 1}, classifier="other")
    text = verdict([failing, adaptive(STANDING)])
    assert text.startswith(
        "**Attackers who know the defence lower its accuracy from 80 to 50 % [24, 76] (ε = 8, efficientnet-lite0; "
        "50 % by majority vote).** The"
    )
    assert "| DIP 500, 128 channels, other |" in strongest([failing])
    assert verdict([failing]).startswith("**No network here works unattacked.** The attacks are reduced")


def test_the_strongest_record_of_each_classifier_is_named() -> None:
    reports = [adaptive(STANDING), adaptive(FALLEN, level="standard"), adaptive(STANDING, classifier="other")]
    text = verdict(reports)
    assert "from 80 to 0 % [0, 28] (ε = 8, efficientnet-lite0; " in text
    assert " and from 80 to 50 % [24, 76] (ε = 8, other; " in text
    assert strongest(reports).count("\n| DIP 500") == 3


def test_the_tables_have_the_strongest_attack_beside_the_defence_unaware_one() -> None:
    text = attacked(adaptive(FALLEN))
    assert "| defence-unaware (transfer), ε=8 | 0.0 [0.0, 27.8] | 60.0 [31.3, 83.2] |" in text
    assert "| **worst case of the attacks**, ε=8 | 0.0 [0.0, 27.8] | 0.0 [0.0, 27.8] |" in text
    assert "REDUCED ATTACK, no robust accuracy." in text
    assert "REDUCED" not in attacked(adaptive(FALLEN, level="full"))


def test_the_tables_tell_what_a_known_seed_leaves_for_the_reconstruction() -> None:
    text = attacked(adaptive(FALLEN | {"known-seed-8@dip-500": 3}))
    assert text.endswith(" An attacker who has DIP 500's seed leaves 30.0 [10.8, 60.3] at ε=8.")
    assert "seed" not in attacked(adaptive(FALLEN))


def test_the_table_names_the_network() -> None:
    half = strongest([adaptive(FALLEN, config=DIPConfig.half_size())])
    assert "| DIP 500, 32 channels at 1/2 of the images' height and width, efficientnet-lite0 |" in half
