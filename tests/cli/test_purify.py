"""``dipdefense purify``: names and kinds of files, what is kept, and failures."""

from __future__ import annotations

import errno
import functools
import json
import os
from pathlib import Path

import numpy as np
import picture_tree
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dipdefense import DIPConfig, DIPPurifier, files, reconstruct, stopping
from dipdefense.cli import fitting, jobs, outputs, purifying
from dipdefense.cli.command import command
from dipdefense.files import read_image
from dipdefense.seeds import derive_seed

FAST = ("--config", "architecture-2", "--device", "cpu", "--precision", "fp32")


def purify(source: Path, out: Path, *words: object) -> Result:
    given = words if "--budgets" in words or "--iters" in words else ("--iters", 2, *words)
    return CliRunner().invoke(command, ["purify", str(source), str(out), *FAST, *map(str, given)])


def told(result: Result) -> dict:
    return json.loads(result.stdout)


def picture(path: Path, *, side: int = 32, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_kind_of_file_is_purified_under_its_name(tmp_path: Path) -> None:
    names = picture_tree.make(tmp_path / "in", 24)
    result = purify(tmp_path / "in", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert written(tmp_path / "out") == names
    assert told(result)["done"] == len(names)
    assert set(told(result)["failed"]) == picture_tree.UNREADABLE
    assert "its header" not in result.stderr
    for name in picture_tree.UNREADABLE:
        assert f"FAILED {name}: " in result.stderr
    assert "of which the first is read" in told(result)["notes"]["animated.webp"][0]

    out = {name: read_image(tmp_path / "out" / name) for name in names}
    assert out["turned.png"].pixels.shape == (3, 40, 33)
    assert out["profile.png"].icc == read_image(tmp_path / "in" / "profile.png").icc is not None
    assert torch.equal(out["deep/transparent.png"].alpha, read_image(tmp_path / "in" / "deep/transparent.png").alpha)
    assert (out["deep/16 bits.png"].bits, out["grey.png"].pixels.shape[0]) == (16, 1)
    assert (out["deep/colour.png"].bits, len(out["deep/colour.png"].pixels)) == (16, 3)
    assert torch.equal(out["deep/colour.png"].alpha, read_image(tmp_path / "in" / "deep/colour.png").alpha)


def test_the_pixels_are_the_defences(tmp_path: Path) -> None:
    source = picture(tmp_path / "in" / "deep" / "a.png")
    picture(tmp_path / "in" / "b.png", side=40)
    assert purify(tmp_path / "in", tmp_path / "out", "--seed", 5).exit_code == 0
    run = reconstruct(
        read_image(source).pixels[None],
        budgets=(2,), config=DIPConfig.architecture_2(), seed=[derive_seed(5, "dip", "deep/a.png")], precision="fp32",
    )  # fmt: skip
    found = read_image(tmp_path / "out" / "deep" / "a.png").pixels
    assert torch.allclose(found, run.images[0, 0], atol=0.6 / 255)


def test_budgets_have_a_folder_each_and_are_shorter_runs(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    assert purify(tmp_path / "in", tmp_path / "out", "--budgets", 1, 3).exit_code == 0
    assert written(tmp_path / "out") == {"1/a.png", "3/a.png"}
    assert purify(tmp_path / "in", tmp_path / "one", "--iters", 1).exit_code == 0
    assert (tmp_path / "one" / "a.png").read_bytes() == (tmp_path / "out" / "1" / "a.png").read_bytes()
    # A budget more later costs a run, and leaves the others as they are.
    kept = (tmp_path / "out" / "3" / "a.png").stat().st_mtime_ns
    assert purify(tmp_path / "in", tmp_path / "out", "--budgets", 1, 2, 3).exit_code == 0
    assert written(tmp_path / "out") == {"1/a.png", "2/a.png", "3/a.png"}
    assert (tmp_path / "out" / "3" / "a.png").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("out", "expected"), [("b.png", "b.png"), ("deep/b.png", "deep/b.png"), ("folder", "folder/a.png")]
)
def test_one_file(tmp_path: Path, out: str, expected: str) -> None:
    source = picture(tmp_path / "in" / "a.bmp")
    assert purify(source, tmp_path / "out" / out).exit_code == 0
    assert written(tmp_path / "out") == {expected}


def test_full_names_keep_files_of_one_stem_apart(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.bmp"):
        picture(tmp_path / "in" / name)
    assert purify(tmp_path / "in", tmp_path / "out", "--full-names").exit_code == 0
    assert written(tmp_path / "out") == {"a.jpg.png", "a.png", "b.bmp.png"}


def test_an_out_below_in_is_no_input(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for _ in range(2):
        assert told(purify(tmp_path, tmp_path / "out", "--json"))["images"] == 1
    assert written(tmp_path) == {"a.png", "out/a.png"}


def test_what_is_done_is_kept(tmp_path: Path, monkeypatch) -> None:
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", number=number)
    assert purify(tmp_path / "in", tmp_path / "out").exit_code == 0
    whole = {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")}
    (tmp_path / "out" / "1.png").unlink()
    assert told(purify(tmp_path / "in", tmp_path / "out", "--json"))["kept"] == 2
    assert {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")} == whole
    monkeypatch.setattr(DIPPurifier, "reconstruct", None)
    result = purify(tmp_path / "in", tmp_path / "out")
    assert (result.exit_code, "3 of 3 images are done, 3 of them before" in result.stdout) == (0, True)


def test_a_changed_original_is_done_anew(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    purify(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / "a.png").read_bytes()
    picture(tmp_path / "in" / "a.png", number=7)
    assert told(purify(tmp_path / "in", tmp_path / "out", "--json"))["done"] == 1
    assert (tmp_path / "out" / "a.png").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--iters", 3], "iterations 2 instead of 3"),
        (["--seed", 1], "seed"),
        (["--precision", "bf16"], "precision 'fp32' instead of 'bf16'"),
        (["--config", "architecture-1"], "config"),
        (["--max-side", 64], "max_side None instead of 64"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_was_done_with_other_settings_is_neither_kept_nor_replaced_silently(
    tmp_path: Path, words: list[object], reason: str
) -> None:
    picture(tmp_path / "in" / "a.png")
    purify(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / "a.png").read_bytes()
    result = purify(tmp_path / "in", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())
    assert "--overwrite" in result.output
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    assert purify(tmp_path / "in", tmp_path / "out", "--overwrite", *words).exit_code == 0
    assert (tmp_path / "out" / "a.png").read_bytes() != before


@pytest.mark.parametrize("content", [b"", b"mine", None], ids=["empty", "text", "a picture"])
def test_somebody_elses_file_is_not_replaced(tmp_path: Path, content: bytes | None) -> None:
    picture(tmp_path / "in" / "a.png")
    other = picture(tmp_path / "out" / "a.png", number=9)
    if content is not None:
        other.write_bytes(content)
    before = other.read_bytes()
    result = purify(tmp_path / "in", tmp_path / "out")
    assert (result.exit_code, "was not written by this command" in result.output) == (2, True)
    assert other.read_bytes() == before


def test_originals_are_never_replaced(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").symlink_to(tmp_path / "a" / "b.png")
    result = purify(tmp_path / "a", tmp_path / "out", "--overwrite")
    assert (result.exit_code, "one of the originals" in result.output) == (2, True)


def test_images_of_one_size_are_fitted_together(tmp_path: Path, monkeypatch) -> None:
    for number in range(5):
        picture(tmp_path / "in" / f"{number}.png", side=(32, 40)[number % 2], number=number)
    fitted = []
    inner = DIPPurifier.reconstruct

    def counted(self, images, **given):
        fitted.append(tuple(images.shape))
        return inner(self, images, **given)

    monkeypatch.setattr(DIPPurifier, "reconstruct", counted)
    assert purify(tmp_path / "in", tmp_path / "out", "--batch-size", 2).exit_code == 0
    assert fitted == [(2, 3, 32, 32), (2, 3, 40, 40), (1, 3, 32, 32)]
    # Those beside it are fitted again, so that its rounding is as it was.
    (tmp_path / "out" / "3.png").unlink()
    assert purify(tmp_path / "in", tmp_path / "out", "--batch-size", 2).exit_code == 0
    assert fitted[3:] == [(2, 3, 40, 40)]


def test_larger_images_are_reduced_if_asked_for(tmp_path: Path) -> None:
    Image.new("RGBA", (120, 80), (9, 99, 9, 128)).save(tmp_path / "a.png")
    result = purify(tmp_path / "a.png", tmp_path / "out", "--max-side", 60)
    assert result.exit_code == 0
    assert "its 120×80 pixels are reduced to 60×40" in result.stderr
    image = read_image(tmp_path / "out" / "a.png")
    assert (image.pixels.shape, image.alpha.shape) == ((3, 40, 60), (1, 40, 60))


def test_an_image_that_memory_does_not_suffice_for_is_told_what_does(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path / "in" / "large.png", side=256)
    picture(tmp_path / "in" / "small.png")
    monkeypatch.setattr("dipdefense.engine.memory._free_bytes", lambda device: 2**26)
    result = purify(tmp_path / "in", tmp_path / "out", "--json")
    assert result.exit_code == 1
    reason = told(result)["failed"]["large.png"]
    assert "fitting its 256×256 pixels would take" in reason
    side = int(reason.split("--max-side ")[1].split()[0])
    assert written(tmp_path / "out") == {"small.png"}
    assert purify(tmp_path / "in", tmp_path / "fits", "--max-side", side).exit_code == 0


def test_a_finished_image_does_not_fail_for_lack_of_memory(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path / "in" / "large.png", side=256)
    assert purify(tmp_path / "in", tmp_path / "out", "--iters", 1).exit_code == 0
    picture(tmp_path / "in" / "another.png", side=256, number=1)
    monkeypatch.setattr("dipdefense.engine.memory._free_bytes", lambda device: 2**26)
    found = told(purify(tmp_path / "in", tmp_path / "out", "--iters", 1, "--json"))
    assert (found["kept"], set(found["failed"])) == (1, {"another.png"})


def test_a_finished_image_whose_original_has_gone_is_no_failure(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path / "in" / "a.png")
    assert purify(tmp_path / "in", tmp_path / "out", "--iters", 1).exit_code == 0
    picture(tmp_path / "in" / "b.png", number=1)
    inner = fitting.Fitter.__call__

    def gone(self, batch, *given):
        (tmp_path / "in" / "a.png").unlink()
        return inner(self, batch, *given)

    monkeypatch.setattr(fitting.Fitter, "__call__", gone)
    result = purify(tmp_path / "in", tmp_path / "out", "--iters", 1, "--json")
    assert (result.exit_code, told(result)["kept"], told(result)["failed"]) == (0, 1, {})


def failing(monkeypatch, marked: float, error: Exception) -> None:
    """Fits of a batch in which an image has this first pixel fail."""
    inner = DIPPurifier.reconstruct

    def fails(self, images, **given):
        if (images[:, 0, 0, 0] == marked).any():
            raise error
        return inner(self, images, **given)

    monkeypatch.setattr(DIPPurifier, "reconstruct", fails)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("broken"), MemoryError()])
def test_an_image_that_cannot_be_fitted_is_named_and_the_others_are_done(tmp_path: Path, monkeypatch, error) -> None:
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", number=number)
    failing(monkeypatch, read_image(tmp_path / "in" / "1.png").pixels[0, 0, 0].item(), error)
    result = purify(tmp_path / "in", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert told(result)["failed"].keys() == {"1.png"}
    assert type(error).__name__ in told(result)["failed"]["1.png"]
    assert written(tmp_path / "out") == {"0.png", "2.png"}


def test_a_resumed_batch_that_fails_is_fitted_image_by_image(tmp_path: Path, monkeypatch) -> None:
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", number=number)
    assert purify(tmp_path / "in", tmp_path / "out").exit_code == 0
    for number in (1, 2):
        (tmp_path / "out" / f"{number}.png").unlink()
    failing(monkeypatch, read_image(tmp_path / "in" / "1.png").pixels[0, 0, 0].item(), RuntimeError("broken"))
    result = purify(tmp_path / "in", tmp_path / "out", "--json")
    assert result.exit_code == 1, result.exception
    assert (told(result)["kept"], told(result)["done"], list(told(result)["failed"])) == (1, 1, ["1.png"])
    assert written(tmp_path / "out") == {"0.png", "2.png"}


def test_a_diverging_image_is_named_and_the_others_are_done(tmp_path: Path, monkeypatch) -> None:
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", number=number)
    inner = DIPPurifier.reconstruct

    def diverges(self, images, **given):
        run = inner(self, images, **given)
        run.images[-1, 1] = torch.nan
        return run

    monkeypatch.setattr(DIPPurifier, "reconstruct", diverges)
    result = purify(tmp_path / "in", tmp_path / "out", "--budgets", 1, 2)
    assert (result.exit_code, "FAILED 1.png: its network diverged within 2" in result.stderr) == (1, True)
    # What it was before is an output like any other.
    assert written(tmp_path / "out") == {"1/0.png", "1/1.png", "1/2.png", "2/0.png", "2/2.png"}


@pytest.mark.parametrize(
    ("number", "code", "done"), [(errno.ENOSPC, 3, 1), (errno.EDQUOT, 3, 1), (errno.EACCES, 1, 2), (errno.EFBIG, 1, 2)]
)
def test_a_write_that_fails(tmp_path: Path, monkeypatch, number: int, code: int, done: int) -> None:
    for name in range(3):
        picture(tmp_path / "in" / f"{name}.png", number=name)
    inner = os.fsync

    def fails(descriptor: int) -> None:
        inner(descriptor)
        fails.calls += 1
        if fails.calls == 2:
            raise OSError(number, os.strerror(number))

    fails.calls = 0
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", fails)
        result = purify(tmp_path / "in", tmp_path / "out")
    assert result.exit_code == code
    assert f"1.png could not be written: {os.strerror(number)}" in " ".join(result.output.split())
    assert len(written(tmp_path / "out")) == done
    assert purify(tmp_path / "in", tmp_path / "out").exit_code == 0
    assert written(tmp_path / "out") == {"0.png", "1.png", "2.png"}


def test_a_file_that_changes_during_the_run_is_named(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path / "in" / "a.png")
    inner = jobs.batches

    def changed(*given):
        picture(tmp_path / "in" / "a.png", number=5)
        return inner(*given)

    monkeypatch.setattr(purifying.jobs, "batches", changed)
    assert "it changed during the run" in told(purify(tmp_path / "in", tmp_path / "out", "--json"))["failed"]["a.png"]


def test_two_runs_into_one_folder(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    with outputs.locked(tmp_path / "out"):
        result = purify(tmp_path / "in", tmp_path / "out")
        assert result.exit_code == 3
        assert f"another run (process {os.getpid()}) is writing into" in result.stderr
    assert written(tmp_path / "out") == set()
    assert purify(tmp_path / "in", tmp_path / "out").exit_code == 0
    # A killed run leaves the file, and no lock.
    (tmp_path / "out" / ".dipdefense.lock").write_text("1")
    assert purify(tmp_path / "in", tmp_path / "out").exit_code == 0
    assert written(tmp_path / "out") == {"a.png"}


def test_unfinished_files_of_killed_runs_are_removed_and_no_others(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "deep" / "a.png")
    left = tmp_path / "out" / "deep" / f".{'0f' * 8}.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    (tmp_path / "out" / "deep" / ".mine.tmp").write_bytes(b"whole")
    assert purify(tmp_path / "in", tmp_path / "out").exit_code == 0
    assert written(tmp_path / "out") == {"deep/a.png", "deep/.mine.tmp"}


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / os.fsdecode(b"caf\xe9.png"))
    assert purify(tmp_path / "in", tmp_path / "out").exit_code == 0
    assert written(tmp_path / "out") == {os.fsdecode(b"caf\xe9.png")}


def test_a_rule_may_end_fits_early(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path / "in" / "a.png")
    monkeypatch.setattr(stopping, "Variance", functools.partial(stopping.Variance, warm_up=1, patience=1))
    assert purify(tmp_path / "in", tmp_path / "out", "--iters", 40, "--stopping", "variance").exit_code == 0
    with Image.open(tmp_path / "out" / "a.png") as written_one:
        told = json.loads(written_one.info["dipdefense"])
    assert told["iterations"] < 40
    assert told["settings"]["stopping"].startswith("Variance(")
    assert purify(tmp_path / "in", tmp_path / "out", "--iters", 40).exit_code == 2


@pytest.mark.slow
def test_spread_over_ray_it_writes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    names = picture_tree.make(tmp_path / "in", 24)
    assert purify(tmp_path / "in", tmp_path / "here").exit_code == 1
    result = purify(tmp_path / "in", tmp_path / "spread", "--engine", "ray", "--workers", 2, "--json")
    assert result.exit_code == 1, result.output
    assert set(told(result)["failed"]) == picture_tree.UNREADABLE
    assert written(tmp_path / "spread") == names
    for name in names:
        assert (tmp_path / "spread" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.parametrize(
    ("device", "gpus", "own"),
    [("cpu", 0, "cpu"), ("cuda", 1, "cuda"), ("cuda:3", 1, "cuda")],
    ids=lambda value: str(value),
)
def test_a_worker_has_a_gpu_where_it_fits_on_one(tmp_path: Path, monkeypatch, device: str, gpus: int, own: str) -> None:
    """A worker sees the GPU that Ray gave it alone, and sees it as the first."""
    picture(tmp_path / "in" / "a.png")
    calls = []

    def spread(function, items, **given):
        calls.append((function._device, given["gpus"]))
        return iter(())

    monkeypatch.setattr("dipdefense.distributed.spread", spread)
    monkeypatch.setattr("dipdefense.distributed.require_ray", lambda: None)
    monkeypatch.setattr("dipdefense.arguments.device", lambda name: torch.device(device))
    monkeypatch.setattr("dipdefense.checks._gpu_has_bf16", lambda device: True)
    monkeypatch.setattr(jobs, "room", lambda *given: 1)
    result = purify(tmp_path / "in", tmp_path / "out", "--engine", "ray")
    assert (result.exit_code, calls) == (0, [(torch.device(own), gpus)]), result.output


@pytest.mark.parametrize("error", [RuntimeError("Ray gave the work up"), ConnectionError("no cluster there")])
def test_a_cluster_that_fails_stops_the_run(tmp_path: Path, monkeypatch, error: Exception) -> None:
    for number in range(2):
        picture(tmp_path / "in" / f"{number}.png", number=number)

    def spread(function, items, **given):
        yield 0, function(items[0])
        raise error

    monkeypatch.setattr("dipdefense.distributed.spread", spread)
    monkeypatch.setattr("dipdefense.distributed.require_ray", lambda: None)
    result = purify(tmp_path / "in", tmp_path / "out", "--batch-size", 1, "--engine", "ray", "--address", "auto")
    assert (result.exit_code, written(tmp_path / "out")) == (3, {"0.png"})
    assert f"Stopped: {error}. The same command resumes." in result.stderr
