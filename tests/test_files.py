"""Files are written all or not at all; image files are read within limits, and what cannot be read is named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from dipdefense.files import UnreadableImage, atomic, write_atomically


def test_a_file_is_written_as_bytes_or_as_utf8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"\x00\xff")
    write_atomically(str(tmp_path / "b"), "ε\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == b"\xce\xb5\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("step", ["the block", "fsync", "replace"])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch, error, step: str) -> None:
    def fail(*args, **kwargs):
        raise error()

    path = tmp_path / "report.md"
    path.write_text("old")
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    if step == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(error) as raised, atomic(path) as file:  # noqa: PT012
        file.write(b"new")
        if step == "the block":
            fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if error is OSError:
        assert raised.value.filename == str(path)


def test_the_old_file_is_whole_until_the_new_one_is(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    path.write_text("old")
    with atomic(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_permissions_are_the_old_files_or_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    (tmp_path / "private").write_text("")
    (tmp_path / "private").chmod(0o600)
    for name in ("fresh", "private"):
        write_atomically(tmp_path / name, "new")
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    for text in ("first", "second"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "folder" / "file").read_text() == text
    assert (tmp_path / "link").is_symlink()


def test_a_name_as_long_as_can_be(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("a" * 255), "x")
    assert (tmp_path / ("a" * 255)).read_text() == "x"


@pytest.mark.parametrize("place", ["missing/a", "file/a", "folder", "fifo"])
def test_places_where_no_file_can_be_written_are_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=str(tmp_path / place)):
        write_atomically(tmp_path / place, "x")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unreadable_image_says_which_and_why() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("val/a.png", "it is empty", id="a.png")))
    assert str(error) == "val/a.png cannot be read as an image: it is empty"
    assert (error.path, error.reason, error.id) == ("val/a.png", "it is empty", "a.png")
    # A DataLoader's worker raises it again so, from the message alone.
    assert str(UnreadableImage(str(error))) == str(error)
