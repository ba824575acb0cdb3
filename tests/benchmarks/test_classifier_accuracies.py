"""Classifier accuracies: the script on a few images, and the page of results."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor, nn

from dipdefense.classifiers import Classifier, Preprocess
from dipdefense.datasets import wordnet_ids

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("benchmark_of_classifiers", ROOT / "benchmarks" / "classifiers.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


class Brightness(nn.Module):
    """The class of the image's brightness in eighths, or always the first."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, images: Tensor) -> Tensor:
        level = (images.mean(dim=(1, 2, 3)) * 8).long()
        return nn.functional.one_hot(level * (not self.constant), 1000).float()


def classifier(name: str) -> Classifier:
    preprocess = Preprocess(resize=16, crop=8)
    return Classifier(
        Brightness(name == "constant"), name=name, mean=(0.0,), std=(1.0,), preprocess=preprocess, categories=()
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight images, each of the class of its brightness but the last."""
    for label in range(8):
        folder = tmp_path / "val" / wordnet_ids()[label if label < 7 else 500]
        folder.mkdir(parents=True)
        Image.new("RGB", (20, 24), (32 * label + 16,) * 3).save(folder / "one.png")
    return tmp_path / "val"


def test_it_counts_and_compares(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(script, "load", classifier)
    monkeypatch.setattr(script, "NAMES", ("squeezenet-caffe",))
    monkeypatch.setattr(script, "VARIANTS", {"constant": lambda: classifier("constant")})
    monkeypatch.setattr(script, "BATCH", 3)
    monkeypatch.setattr(script, "PACKAGES", ("torch",))
    out = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", f"classifiers.py --data {data} --out {out}".split())
    script.main()
    record = json.loads(out.read_text())
    assert capsys.readouterr().out.strip() == script.table(record)
    good, constant = record["classifiers"].values()
    assert (good["n"], good["correct"], constant["correct"]) == (8, 7, 1)
    assert good["wrong"] == {f"{wordnet_ids()[500]}/one.png": 7}
    assert record["against squeezenet-caffe"]["constant"] == {"only_first": 6, "only_second": 0, "p": 0.03125}
    assert record["versions"]["torch"] == metadata.version("torch")
    assert "| constant | 16, bilinear, 8 | 1 of 8 | 12.5 [2.2, 47.1] |" in script.table(record)


def test_the_page_has_the_newest_record() -> None:
    newest = max(script.RESULTS.glob("classifiers-*.json"))
    record = json.loads(newest.read_text())
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert script.table(record) in text, f"copy the table that python benchmarks/classifiers.py printed: {newest}"
    assert newest.name in text
    assert "-dirty" not in record["commit"]
