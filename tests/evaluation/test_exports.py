"""Exports are written all or not at all, read back, and refused if changed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measuring import record

from dipdefense.evaluation import Run, export, read_export
from dipdefense.evaluation.records import identity

RUN = Run(
    {"classifier": "tiny", "data": "noise", "input": [3, 32, 32], "backend": "torch"},
    (
        record("a", content="0a", session=1),
        record("a", content="0a", session=1, budget=4, status="diverged"),
        record("ü\u2028", content="0b", session=3, position=1, prediction=-1, confidence=None, loss=None),
    ),
    {1: {"commit": "c0ffee"}, 3: {"commit": "cafe"}},
    ("broken.png",),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "table2.jsonl"
    export(RUN, path)
    return path


def without_digest(path: Path) -> None:
    """As the first exports were: no digest in the head, and none of the images."""
    head, *lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    del head["digest"], head["skipped"]
    del head["configuration"]["backend"]
    head["configuration"]["images"] = "0123"
    for line in lines:
        del line["content"]
    path.write_text("\n".join(map(json.dumps, [head, *lines])) + "\n")


def test_an_export_is_read_back_as_it_was(path: Path) -> None:
    assert read_export(path) == RUN
    before = path.read_bytes()
    export(read_export(path), path)
    assert path.read_bytes() == before


def test_an_export_without_a_digest_is_trusted_by_name_says_so_and_has_one_once_exported_again(path: Path) -> None:
    without_digest(path)
    run = read_export(path)
    assert identity(run.configuration) == identity(RUN.configuration)
    assert [(r.image, r.content) for r in run.records] == [("a", ""), ("a", ""), ("ü\u2028", "")]
    assert all("trusted by name" in told["images"] for told in run.sessions.values())
    export(run, path)
    assert "digest" in json.loads(path.read_text().split("\n")[0])
    assert read_export(path) == run


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "confidence": ({"confidence": 99}, "confidence must be a number in [0, 1] or null, got 99"),
    "NaN": ({"confidence": float("nan")}, "it is not JSON (NaN is not a number)"),
    "status": ({"status": "wat"}, "status must be one of ok, diverged, got 'wat'"),
    "prediction": ({"prediction": "cat"}, "prediction must be an integer"),
    "prediction of nothing": ({"prediction": -1}, "prediction is -1 exactly where confidence is null"),
    "seed": ({"seed": 10**25}, "seed must be an integer in [0, 9223372036854775807]"),
    "huge": ({"loss": 10**400}, "loss must be a finite number"),
    "boolean": ({"label": True}, "label must be an integer"),
    "budget": ({"budget": -1}, "budget must be an integer"),
    "seconds": ({"seconds": -0.5}, "seconds must be a finite number of at least 0"),
    "image": ({"image": ""}, "image must be a non-empty string"),
    "session": ({"session": 77}, "the first line has no session 77"),
    "unknown field": ({"more": 1}, "missing or unknown: more"),
    "twice": ({"budget": 2}, "line 2 has this outcome already"),
    "position": ({"position": 7}, "position, label or content of 'a' are others than in a line before"),
    "label": ({"label": 4}, "position, label or content of 'a' are others"),
    "place of another": ({"image": "c"}, "position 0 is that of 'a'"),
}


@pytest.mark.parametrize("digest", [True, False], ids=["", "without digest"])
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_bad_field_is_refused_with_file_and_line(
    path: Path, change: dict[str, Any], message: str, digest: bool
) -> None:
    if not digest:
        without_digest(path)
    lines = path.read_text().split("\n")
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3: {message}")):
        read_export(path)


def test_a_missing_field_is_named(path: Path) -> None:
    path.write_text(path.read_text().replace('"status": "diverged"', '"state": "diverged"'))
    with pytest.raises(ValueError, match="line 3: missing or unknown: state, status"):
        read_export(path)


SWAPS: dict[str, Callable[[str], str]] = {
    "a prediction": lambda text: text.replace('"prediction": 3', '"prediction": 4', 1),
    "the configuration": lambda text: text.replace("tiny", "huge", 1),
    "the commit": lambda text: text.replace("c0ffee", "decaf", 1),
    "the skipped": lambda text: text.replace("broken.png", "whole.png", 1),
    "a line less": lambda text: text[: text[:-1].rindex("\n") + 1],
    "the order": lambda text: "\n".join([*text.split("\n")[:1], *text.split("\n")[3:0:-1], ""]),
}


@pytest.mark.parametrize("change", SWAPS.values(), ids=SWAPS)
def test_a_change_that_leaves_every_field_plausible_is_refused(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=r"table2.jsonl, line 1: the file was changed or cut after its export"):
        read_export(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        pytest.param("[" * 100_000, id="nested"),
        '{"configuration": {}, "sessions": {}}',
        '{"configuration": {"classifier": "a", "data": "b", "input": "c"}, "sessions": {}}',
        '{"configuration": {"classifier": "a", "data": "b", "input": []}, "sessions": {"one": {}}}',
        '{"sessions": {}}',
    ],
)
def test_no_export_at_all_is_refused(text: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=r"table2.jsonl, line 1: .*; it holds no exported run"):
        read_export(path)


def test_a_file_cut_in_a_line_is_refused_there(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"line 4: it is not JSON"):
        read_export(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"line 1: .*utf-8"):
        read_export(path)


def test_a_disk_that_fills_up_leaves_the_old_export(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export(Run(RUN.configuration, RUN.records[:1], RUN.sessions), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["table2.jsonl"]
