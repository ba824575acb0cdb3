"""Sets in the format of Ilyas et al. 2019 are read, and other files refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dipdefense.datasets import released_set

IMAGES, LABELS = torch.rand(5, 3, 32, 32), torch.tensor([0, 9, 3, 3, 1])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(images: Any = IMAGES, labels: Any = LABELS) -> Path:
        for name, value in (("CIFAR_ims", images), ("CIFAR_lab", labels)):
            torch.save(value, tmp_path / name)
        return tmp_path

    return written


@pytest.mark.parametrize(
    "cut", [lambda tensor: list(torch.split(tensor, 2)), lambda tensor: tensor], ids=["list", "one"]
)
def test_batches_are_joined_in_order(write: Callable[..., Path], cut: Callable[[torch.Tensor], Any]) -> None:
    found = released_set(write(cut(IMAGES.double()), cut(LABELS.int())))
    torch.testing.assert_close(found.images, IMAGES)
    assert found.images.dtype == torch.float32
    assert torch.equal(found.labels, LABELS)
    assert found.labels.dtype == torch.int64
    assert found.ids == ("0", "1", "2", "3", "4")
    assert found.categories[9] == "truck"


def test_the_layout_of_older_torch_is_read_too(write: Callable[..., Path]) -> None:
    folder = write()
    torch.save(list(torch.split(IMAGES, 2)), folder / "CIFAR_ims", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(released_set(folder).images, IMAGES)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nowhere").touch, ())


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "bytes": (
            {"images": (255 * IMAGES).byte()},
            r"must hold \(N, 3, H, W\) floats in \[0, 1\], got .* torch.uint8",
        ),
        "grey": ({"images": IMAGES[:, :1]}, r"\(5, 1, 32, 32\)"),
        "normalised": ({"images": 4 * IMAGES - 2}, "undo a normalisation"),
        "NaN": ({"images": IMAGES.index_fill(0, torch.tensor([1]), torch.nan)}, "got nan to nan"),
        "fewer labels": ({"labels": LABELS[:4]}, "must hold 5 integers, one for each image"),
        "floats for labels": ({"labels": LABELS.float()}, "torch.float32"),
        "another class": ({"labels": LABELS + 1}, r"classes in \[0, 10\)"),
        "no tensors": ({"images": [1, 2]}, "must hold a list of tensors, got list"),
        "nothing": ({"images": []}, "must hold a list of tensors"),
        "a dict": ({"images": {"a": IMAGES}}, "got dict"),
        "sizes": ({"images": [IMAGES, IMAGES[..., :16]]}, "batches of one shape"),
        "code": ({"images": Evil()}, "cannot be read as a file of tensors only"),
    }.values(),
    ids=str,
)
def test_anything_else_is_refused_with_the_files_name(
    write: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        released_set(write(**change))
    assert "CIFAR_" in str(error.value)


def test_a_missing_file_is_named_with_the_format(write: Callable[..., Path]) -> None:
    folder = write()
    (folder / "CIFAR_lab").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*CIFAR_lab; a set is a folder with CIFAR_ims and CIFAR_lab"):
        released_set(folder)
