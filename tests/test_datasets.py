"""Labelled images from packages, folders and archives: the right labels, a fixed order, and named errors."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dipdefense import datasets
from dipdefense.classifiers import Preprocess


def picture(path: Path, grey: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), grey, dtype=np.uint8)).convert(mode).save(path)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    picture(tmp_path / "n02088364" / "b.JPEG", 20)
    picture(tmp_path / "n02088364" / "a.png", 10)
    picture(tmp_path / "n15075141" / "deeper.jpg", 30, "L")
    (tmp_path / "n02088364" / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "size", "first", "category"),
    [("imagenet", (224, 224), 243, "bull mastiff"), ("cifar10", (32, 32), 3, "cat")],
)
def test_packaged_images(name, size, first: int, category: str) -> None:
    packaged = datasets.packaged_images(name)
    assert packaged.images.shape == (20, 3, *size)
    assert packaged.images.dtype == torch.float32
    assert packaged.images.max() <= 1
    assert packaged.images.max() > 0.9
    assert packaged.labels[0] == first
    assert packaged.categories[first] == category
    assert len(set(packaged.ids)) == 20


def test_wordnet_ids_are_in_class_order() -> None:
    ids = datasets.wordnet_ids()
    assert len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert (ids[0], ids[243], ids[999]) == ("n01440764", "n02108422", "n15075141")


def test_any_subset_of_classes_has_the_right_indices(imagenet: Path) -> None:
    folder = datasets.image_folder(imagenet)
    assert folder.ids == ("n02088364/a.png", "n02088364/b.JPEG", "n15075141/deeper.jpg")
    assert folder.labels == (162, 162, 999)
    assert folder.categories[162] == "beagle"
    for index, grey in enumerate((10, 20, 30)):
        item = folder[index]
        assert item.id == folder.ids[index]
        assert item.image.shape == (3, 40, 50)
        assert item.image.mean() == pytest.approx(grey / 255, abs=0.01)


def test_images_are_read_when_asked_for(imagenet: Path) -> None:
    folder = datasets.image_folder(imagenet, preprocess=Preprocess(resize=36, crop=32))
    (imagenet / "n02088364" / "b.JPEG").write_bytes(b"broken")
    assert folder[0].image.shape == (3, 32, 32)
    with pytest.raises(ValueError, match=r"n02088364/b\.JPEG cannot be read"):
        folder[1]


def test_stacking_and_loading_in_batches(imagenet: Path) -> None:
    folder = datasets.image_folder(imagenet, preprocess=Preprocess(resize=36, crop=32))
    batch = folder.stack([2, 0])
    assert batch.ids == ("n15075141/deeper.jpg", "n02088364/a.png")
    assert batch.labels.tolist() == [999, 162]
    ids, images, labels = next(iter(DataLoader(folder, batch_size=3)))
    assert images.shape == (3, 3, 32, 32)
    assert labels.tolist() == [162, 162, 999]
    assert tuple(ids) == folder.ids


def test_other_modes_become_rgb_before_preprocessing(tmp_path: Path) -> None:
    for name, mode in (("a.png", "L"), ("b.jpg", "CMYK"), ("c.png", "RGBA"), ("d.png", "P")):
        picture(tmp_path / "n02088364" / name, 100, mode)
    seen: list[str] = []

    def preprocess(given: Image.Image) -> torch.Tensor:
        seen.append(given.mode)
        return Preprocess(resize=36, crop=32)(given)

    assert datasets.image_folder(tmp_path, preprocess=preprocess).stack().images.shape == (4, 3, 32, 32)
    assert seen == ["RGB"] * 4


def test_a_failing_preprocess_is_not_blamed_on_the_file(imagenet: Path) -> None:
    def broken(given: Image.Image) -> torch.Tensor:
        raise OSError("its own fault")

    with pytest.raises(OSError, match=r"^its own fault$"):
        datasets.image_folder(imagenet, preprocess=broken)[0]


def test_images_of_several_sizes_are_no_batch(imagenet: Path) -> None:
    Image.new("RGB", (33, 34)).save(imagenet / "n02088364" / "b.JPEG")
    with pytest.raises(ValueError, match=r"\(3, 34, 33\) and \(3, 40, 50\); give the data set a preprocess"):
        datasets.image_folder(imagenet).stack()


def test_it_can_be_sent_to_other_processes(imagenet: Path) -> None:
    folder = datasets.image_folder(imagenet)
    assert torch.equal(pickle.loads(pickle.dumps(folder))[1].image, folder[1].image)


@pytest.mark.parametrize("archived", [False, True], ids=["folder", "zip"])
def test_cifar10(tmp_path: Path, archived: bool) -> None:
    for split, name, grey in (("train", "cat", 1), ("test", "truck", 2), ("test", "airplane", 3)):
        picture(tmp_path / "files" / split / name / "0000.png", grey)
    root = tmp_path / "files"
    if archived:
        with zipfile.ZipFile(tmp_path / "cifar.zip", "w") as archive:
            for path in root.rglob("*.png"):
                archive.write(path, path.relative_to(root).as_posix())
        root = tmp_path / "cifar.zip"
    test = datasets.cifar10(root)
    assert test.ids == ("test/airplane/0000.png", "test/truck/0000.png")
    assert test.labels == (0, 9)
    assert test[1].image.mean() == pytest.approx(2 / 255)
    assert datasets.cifar10(root, split="train").labels == (3,)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    picture(tmp_path / "image.png", 9)
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.write(tmp_path / "image.png", f"test/cat/{number}.png")
    return tmp_path / "images.zip"


def test_an_archive_is_opened_once_in_each_process(archive: Path, monkeypatch) -> None:
    opened: list[Path] = []

    class Counted(zipfile.ZipFile):
        def __init__(self, file, *args, **kwargs) -> None:
            opened.append(file)
            super().__init__(file, *args, **kwargs)

    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    images = datasets.cifar10(archive)
    images.stack()
    assert len(opened) == 1
    monkeypatch.setattr("os.getpid", lambda: -1)
    images.stack()
    assert len(opened) == 2


def test_a_broken_file_in_an_archive_is_named(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[60] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.zip/test/cat/0\.png cannot be read"):
        datasets.cifar10(archive)[0]


def test_the_measuring_archive(shared_data: Path) -> None:
    test = datasets.cifar10(shared_data / "cifar10-images.zip")
    assert len(test) == 10_000
    assert test[3456].image.shape == (3, 32, 32)


def test_bad_roots_and_folders(tmp_path: Path, imagenet: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        datasets.image_folder(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images"):
        datasets.image_folder(tmp_path / "empty")
    picture(imagenet / "beagle" / "a.png", 0)
    with pytest.raises(ValueError, match="'beagle'"):
        datasets.image_folder(imagenet)
    with pytest.raises(FileNotFoundError, match="only a file"):
        datasets.image_folder(imagenet / "n02088364" / "a.png")
    with pytest.raises(ValueError, match="packaged images are"):
        datasets.packaged_images("mnist")


@pytest.mark.parametrize("place", ["val/n02088364", "n02088364/deeper", "."], ids=["above", "below", "no folder"])
def test_images_lie_directly_in_their_class(tmp_path: Path, place: str) -> None:
    picture(tmp_path / place / "a.png", 0)
    with pytest.raises(ValueError, match=f"the folder '{place}'"):
        datasets.image_folder(tmp_path)


def test_bad_cifar10_roots(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(ValueError, match="'val'"):
        datasets.cifar10(archive, split="val")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"laid out as 'train/cat/any\.jpg'"):
        datasets.cifar10(archive, split="train")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        datasets.cifar10(tmp_path / "image.png")


def test_missing_package_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"dipdefense\[demo\]"):
        datasets.packaged_images()
