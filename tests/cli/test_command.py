"""The command line by itself: help without torch, usage errors, fuzzed arguments."""

from __future__ import annotations

import functools
import io
import random
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dipdefense import DIPPurifier, Reconstruction, evaluation
from dipdefense.__main__ import main
from dipdefense.checks import Precision
from dipdefense.cli import ending, evaluating, examination, options, reading
from dipdefense.cli.command import command
from dipdefense.cli.costs import Cost
from dipdefense.cli.proof import Proof
from dipdefense.config import CONFIGS, Backend
from dipdefense.evaluation import AdaptiveReport, Run
from dipdefense.stopping import RuleName

SUBCOMMANDS = tuple(command.list_commands(None))


@pytest.mark.parametrize("words", [["--help"], ["-h"], *([name, "--help"] for name in SUBCOMMANDS)], ids=" ".join)
def test_help_needs_click_alone(words: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['dipdefense', *{words}]\n"
        "from dipdefense.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "found = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(found & {'torch', 'numpy', 'PIL', 'tqdm', 'torchvision', 'art', 'click', 'dipdefense'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['click', 'dipdefense']"
    assert "Exit codes:" in done.stdout
    assert "130  interrupted" in done.stdout


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "dipdefense", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dipdefense ")


def test_a_character_that_stdout_cannot_encode_is_escaped(monkeypatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stdout)
    monkeypatch.setattr(ending, "handle_signals", lambda: None)
    monkeypatch.setattr(command, "main", lambda **_: click.echo("日本 é.png"))
    main()
    stdout.seek(0)
    assert stdout.read() == "\\u65e5\\u672c é.png\n"


def test_the_names_of_choices_are_the_librarys() -> None:
    assert set(options.CONFIG_NAMES) == set(CONFIGS)
    assert get_args(Backend) == options.BACKENDS
    assert get_args(Precision) == options.PRECISIONS
    assert get_args(RuleName) == options.RULES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Usage:"),
        (["purge"], "No such command"),
        (["purify"], "Missing argument 'IN'"),
        (["purify", "missing", "out"], "'missing' does not exist"),
        (["purify", "empty", "out"], "there are no images"),
        (["purify", "a.png", "out", "--iters", "0"], "not in the range"),
        (["purify", "a.png", "out", "--iters", "5", "--budgets", "5", "9"], "either --iters or --budgets"),
        (["purify", "a.png", "out", "--budgets", "9", "5"], "must be in ascending order"),
        (["purify", "a.png", "out.jpg"], r"ends in .png"),
        (["purify", "a.png", "a.png"], "one of the originals"),
        (["purify", "full", "full"], "the same folder"),
        (["purify", "full", "a.png"], "a.png is a file"),
        (["purify", "a.png", "out", "--device", "tpu"], "--device: must be cpu, cuda or cuda:N"),
        (["purify", "a.png", "out", "--device", "cuda:77"], "CUDA devices"),
        (["purify", "a.png", "out", "--backend", "cudagraphs", "--device", "cpu"], "NVIDIA GPU"),
        (["purify", "both", "out"], "would both become a.png; rename one, or give --full-names"),
        (["classify", "a.png", "--classifier", "resnet9000"], "did you mean"),
        (["classify", "a.png", "--weights", "missing"], "does not exist"),
        (["attack", "a.png", "out", "--epsilon", "0"], "not in the range"),
        (["attack", "a.png", "out", "--attack", "pgd"], "is not one of"),
        (["attack", "a.png", "out", "--label", "1000"], r"labels must lie in \[0, 1000\)"),
        (["doctor", "--size", "8"], "at least 32 pixels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_end_before_any_work(place: Path, words: list[str], message: str) -> None:
    before = sorted(place.rglob("*"))
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 2, result.output
    assert message.replace("\\", "") in " ".join(result.output.split())
    assert sorted(place.rglob("*")) == before


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """A folder to be in, with an image, a file that is none, and folders."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "full", "both"):
        Path(name).mkdir()
    for name in ("a.png", "full/b.png", "both/a.png", "both/a.jpg"):
        Image.new("RGB", (40, 33), "teal").save(name)
    Path("text.png").write_text("no image")
    return tmp_path


WORDS = [
    "", "-", "--", "---", "0", "1", "-1", "2", "7", "500", "750", "1e3", "0x10", "1_000", "٣", "9" * 5000, "nan", "inf",
    "5.5", "255", "256", "true", "None", "auto", "cpu", "cuda", "cuda:99", "meta", "fp32", "bf16", "torch", "triton",
    "paper", "compact", "architecture-2", "fgsm", "noise", "llci", "efficientnet-lite0", "json", "csv", "a.png",
    "text.png", "empty", "full", "both", "missing", "out", "out.png", "out/x.png", "out.jpg", "a.png/x", "\0", "ä ε",
    "\udcff.png", "x" * 300, ".", "/dev/null", "/dev/null/x", "/proc/nothing", "~", "*", "%s", "{}", "--help", "-h",
]  # fmt: skip


def lists(count: int) -> list[list[str]]:
    """Argument lists: well-formed ones with a few words changed, and words at random."""
    chance = random.Random(1)
    sound = [
        ["purify", "a.png", "out", "--iters", "2", "--config", "architecture-2"],
        ["purify", "full", "out", "--budgets", "1", "2", "--seed", "3", "--json"],
        ["classify", "a.png", "--purify", "2", "--top", "3", "--form", "csv"],
        ["attack", "full", "out", "--attack", "fgsm", "--epsilon", "5"],
        ["doctor", "--size", "32", "--config", "compact"],
        ["evaluate", "out", "--images", "2", "--level", "quick", "--epsilon", "8"],
    ]
    flags = sorted({flag for name in SUBCOMMANDS for given in command.get_command(None, name).params
                    for flag in given.opts if flag.startswith("-")})  # fmt: skip
    found = []
    while len(found) < count:
        words = list(chance.choice(sound))
        if chance.random() < 0.1:
            words = words[:1]
        for _ in range(chance.randint(0, 4)):
            spot = chance.randint(1, len(words))
            word = chance.choice(WORDS if chance.random() < 0.6 else flags)
            match chance.randint(0, 3):
                case 0:
                    words.insert(spot, word)
                case 1 if len(words) > 1:
                    words[min(spot, len(words) - 1)] = word
                case 2 if len(words) > 1:
                    del words[min(spot, len(words) - 1)]
                case _:
                    words.append(word)
        found.append(words)
    return found


@pytest.fixture
def _instant(monkeypatch) -> None:
    """Fits, proofs and measurements that take no time; a classifier loaded once."""

    def fitted(self, images, *, budgets, seed, on_iteration=None):
        assert len(seed) == len(images)
        return Reconstruction(budgets, images.repeat(len(budgets), 1, 1, 1, 1), torch.zeros(budgets[-1], 1),
                              ("ok",) * len(images), "torch")  # fmt: skip

    monkeypatch.setattr(DIPPurifier, "reconstruct", fitted)
    monkeypatch.setattr(examination, "prove", lambda device, precision: Proof(precision, 0.0, 1.0))
    monkeypatch.setattr(examination, "measure", lambda *given, **named: Cost(1, 3, 1.0, None, 1, 2))
    monkeypatch.setattr(evaluation, "evaluate", lambda *given, **named: AdaptiveReport(Run({}, (), {}, ())))
    monkeypatch.setattr(evaluating, "written", lambda report, folder: "")
    monkeypatch.setattr(AdaptiveReport, "to_json", lambda report: "{}")
    monkeypatch.setattr(reading, "load", functools.cache(reading.load))


@pytest.mark.usefixtures("_instant", "place")
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_argument_list_has_a_traceback(count: int) -> None:
    runner, codes = CliRunner(), []
    for words in lists(count):
        result = runner.invoke(command, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        assert result.exit_code in (0, 1, 2, 3), (words, result.output)
        codes.append(result.exit_code)
    assert {0, 2} <= set(codes)
