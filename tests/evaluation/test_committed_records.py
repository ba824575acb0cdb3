"""The present code finds the committed records complete and measures none anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Never

import pytest
from torch import nn

from dipdefense import DIPConfig
from dipdefense.config import PAPER_BUDGETS
from dipdefense.evaluation import Run, Store, deep_image_prior, low_pass, randomisation, read_export, undefended
from dipdefense.evaluation.protocol import Chosen, attack_named
from dipdefense.evaluation.records import identity
from dipdefense.evaluation.runner import Experiment, run

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CONFIGS = {
    "table2-baselines": DIPConfig(scales=5, channels=32),
    "table2-cifar10": DIPConfig.architecture_1(),
    "table2-cifar10-architecture-2": DIPConfig.architecture_2(),
    "table2-cifar10-architecture-1-seeds": DIPConfig.architecture_1(),
    "table2-cifar10-seeds": DIPConfig.architecture_2(),
    "table2-compact": DIPConfig(scales=5, channels=32),
    "table2-half-size": DIPConfig(scales=5, channels=32, reduction=2),
    "table2-paper-network": DIPConfig.paper(),
    "table2-paper-network-bf16": DIPConfig.paper(),
    "table2-reconstruction": DIPConfig(scales=5, channels=32),
    "table2-rounding": DIPConfig(scales=5, channels=32),
    "table2-squeezenet": DIPConfig(scales=5, channels=32),
    "table2-squeezenet-half-size": DIPConfig(scales=5, channels=32, reduction=2),
}


class Named:
    """A data set of which nothing but names and labels is left."""

    def __init__(self, exported: Run) -> None:
        known = {record.image: record.label for record in exported.records}
        self.ids, self.labels = list(known), list(known.values())

    def stack(self, indices: object) -> Never:
        raise AssertionError(f"the images {indices} were to be measured")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_with_the_same_settings_is_the_same_run(name: str) -> None:
    stored = read_export(RESULTS / name / "table2.jsonl").configuration
    precision = "bf16" if name.endswith("bf16") else "fp32"
    settings = deep_image_prior(PAPER_BUDGETS, config=CONFIGS[name], precision=precision).settings
    # The kernels of some records are switched off here.
    own = json.loads(json.dumps(dict(settings))) | {"backend": stored["backend"]}
    assert identity(stored | own) == identity(stored)
    assert DIPConfig.from_json(stored["dip"]) == CONFIGS[name]


def test_the_committed_reconstructions_are_complete_and_another_variants_are_not(tmp_path: Path) -> None:
    exported = read_export(RESULTS / "table2-reconstruction" / "table2.jsonl")
    images = {record.image: record.content for record in exported.records}
    conditions = {name: attack_named(name) for name in ("clean", "fgsm-5", "bi-10")}

    def resumed(config: DIPConfig) -> Run:
        budgets = tuple(range(50, 1001, 50))
        reconstruction = deep_image_prior(budgets, config=config, precision="fp32")
        defences = [undefended(), randomisation((1, 30)), low_pass((2, 3)), reconstruction]
        with Store(tmp_path / "outcomes.sqlite") as store:
            store.restore(exported)
            experiment = Experiment(
                data=Named(exported), chosen=Chosen(tuple(range(30)), 30, tuple(images.values())),
                classifier=nn.Identity(), conditions=conditions, defences=defences, seeds=(0,),
            )  # fmt: skip
            done = run(store, exported.configuration | defences[-1].settings, {}, experiment)
            return store.load(done.key)

    assert len(resumed(DIPConfig(scales=5, channels=32)).records) == len(exported.records) == 30 * 3 * 25
    with pytest.raises(AssertionError, match="were to be measured"):
        resumed(DIPConfig(scales=5, channels=32, upsampling="nearest"))
