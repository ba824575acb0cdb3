"""Labelled images from packages, folders and archives: labels, order and errors."""

from __future__ import annotations

import os
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
from dipdefense.files import UnreadableImage
from dipdefense.seeds import derive_seed

# Most of these CIFAR-10 sets have but a few classes.
pytestmark = pytest.mark.filterwarnings("ignore:.*the other classes are used:UserWarning")


def picture(path: Path, grey: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50, 3), grey, dtype=np.uint8)).convert(mode).save(path)


def save(path: Path, image: Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


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


@pytest.mark.parametrize("preprocess", [None, Preprocess(resize=36, crop=32)], ids=["as it is", "preprocessed"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("value", [0, 200, 30_000, 65_535])
def test_grey_of_16_bits_keeps_its_values(tmp_path: Path, preprocess, suffix: str, value: int) -> None:
    save(tmp_path / "n02088364" / f"a{suffix}", Image.fromarray(np.full((40, 50), value, np.uint16)))
    image = datasets.image_folder(tmp_path, preprocess=preprocess)[0].image
    torch.testing.assert_close(image, torch.full_like(image, value / 65_535), rtol=0, atol=0.5 / 255)


@pytest.mark.parametrize("name", ["a.gif", "a.GIF", "a.tif", "a.tiff", "a.webp", "a.bmp"])
def test_formats_that_are_read(tmp_path: Path, name: str) -> None:
    save(tmp_path / "n02088364" / name, Image.new("RGB", (33, 32), (255, 0, 0)))
    image = datasets.image_folder(tmp_path)[0].image
    assert image.shape == (3, 32, 33)
    assert image.mean(dim=(1, 2)).tolist() == pytest.approx([1, 0, 0], abs=0.02)


@pytest.mark.parametrize("preprocess", [None, Preprocess(resize=32, crop=32)], ids=["as it is", "preprocessed"])
def test_pictures_are_upright(tmp_path: Path, preprocess) -> None:
    sideways = Image.new("L", (48, 48))
    sideways.paste(255, (0, 0, 24, 48))  # its left half is white, which is the upper one once it is turned
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "n02088364" / "a.jpg", sideways, exif=exif)
    image = datasets.image_folder(tmp_path, preprocess=preprocess)[0].image
    assert image[:, :12].min() > 0.9
    assert image[:, -12:].max() < 0.1


def test_a_failing_preprocess_is_not_blamed_on_the_file(imagenet: Path) -> None:
    def broken(given: Image.Image) -> torch.Tensor:
        raise OSError("its own fault")

    with pytest.raises(OSError, match=r"^its own fault$"):
        datasets.image_folder(imagenet, preprocess=broken)[0]


def test_images_of_several_sizes_are_no_batch(imagenet: Path) -> None:
    Image.new("RGB", (33, 34)).save(imagenet / "n02088364" / "b.JPEG")
    with pytest.raises(ValueError, match=r"\(3, 34, 33\) and \(3, 40, 50\); give the data set a preprocess"):
        datasets.image_folder(imagenet).stack()
    with pytest.raises(ValueError, match="a batch needs at least one image"):
        datasets.image_folder(imagenet).stack([])


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


def test_a_kept_archive_is_not_taken_for_another_at_its_path(archive: Path, tmp_path: Path, monkeypatch) -> None:
    def shade(path: str) -> int:
        return round(255 * datasets.cifar10(path)[0].image.mean().item())

    monkeypatch.chdir(tmp_path)
    assert shade("images.zip") == 9
    for folder in (tmp_path / "elsewhere", tmp_path):
        folder.mkdir(exist_ok=True)
        picture(tmp_path / "another.png", 7)
        with zipfile.ZipFile(tmp_path / "new.zip", "w") as another:
            another.write(tmp_path / "another.png", "test/cat/0.png")
        (tmp_path / "new.zip").replace(folder / "images.zip")
        monkeypatch.chdir(folder)
        assert shade("images.zip") == 7


def test_a_broken_file_in_an_archive_is_named(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[60] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.zip/test/cat/0\.png cannot be read"):
        datasets.cifar10(archive)[0]


def test_an_entry_longer_than_any_image_is_refused_by_its_size(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as appended:
        appended.writestr("test/cat/3.png", b"short")
        appended.filelist[-1].file_size = 10 * 2**30
    images = datasets.cifar10(archive)
    with pytest.raises(UnreadableImage, match=r"test/cat/3\.png .* longer than 268,435,456 bytes"):
        images[3]
    assert images[2].image.shape == (3, 40, 50)


def make(path: Path, kind: str) -> None:
    """A file that only its name makes an image."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(path.with_name("nothing"))
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    elif kind == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "too narrow":
        Image.new("RGB", (1, 4000)).save(path)
    elif kind == "one pixel":
        Image.new("RGB", (1, 1)).save(path)
    else:
        path.write_bytes({"empty": b"", "text": b"no image\n", "zeros": bytes(1000)}[kind])


BAD = {
    "pipe": "not a regular file",
    "dangling link": "No such file",
    "link to itself": "Too many levels of symbolic links",
    "endless device": "not a regular file",
    "truncated": "truncated",
    "empty": "it is empty",
    "text": "it does not begin as a readable BMP",
    "zeros": "it does not begin as a readable BMP",
    "too narrow": "1×4000",
    "one pixel": "1×1",
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("kind", "reason"), BAD.items(), ids=BAD)
def test_a_bad_file_is_named_and_spoils_no_other(imagenet: Path, kind: str, reason: str) -> None:
    make(imagenet / "n02088364" / "bad.png", kind)
    folder = datasets.image_folder(imagenet, preprocess=Preprocess(resize=36, crop=32))
    assert folder.ids[2] == "n02088364/bad.png"
    with pytest.raises(UnreadableImage, match=reason) as raised:
        folder[2]
    assert raised.value.id == "n02088364/bad.png"
    assert raised.value.path == str(imagenet / "n02088364" / "bad.png")
    with pytest.raises(UnreadableImage, match=r"bad\.png"):
        folder.stack()
    assert folder.stack([0, 1, 3]).images.shape == (3, 3, 32, 32)


def test_a_folder_that_is_named_like_an_image_is_none(imagenet: Path) -> None:
    make(imagenet / "n02088364" / "bad.png", "folder")
    assert len(datasets.image_folder(imagenet)) == 3


def test_a_workers_error_is_the_same(imagenet: Path) -> None:
    (imagenet / "n02088364" / "b.JPEG").write_bytes(b"broken")
    loader = DataLoader(datasets.image_folder(imagenet), batch_size=None, num_workers=1)
    with pytest.raises(UnreadableImage, match=r"n02088364/b\.JPEG cannot be read"):
        list(loader)


def test_a_name_that_is_no_utf8_gets_an_id_that_is(imagenet: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    picture(imagenet / "n02088364" / name, 40)
    (imagenet / "n02088364" / os.fsdecode(b"\xff.png")).write_bytes(b"broken")
    folder = datasets.image_folder(imagenet)
    assert folder.ids[2] == r"n02088364/caf\udce9.png"
    assert folder[2].image.mean() == pytest.approx(40 / 255)
    for identity in folder.ids:
        derive_seed(0, identity)
    with pytest.raises(UnreadableImage, match=r"\\udcff\.png") as raised:
        folder[3]
    str(raised.value).encode()


def test_two_files_of_one_id_are_refused(imagenet: Path) -> None:
    picture(imagenet / "n02088364" / os.fsdecode(b"\xe9.png"), 1)
    picture(imagenet / "n02088364" / r"\udce9.png", 2)
    with pytest.raises(ValueError, match=r"more than one file .* '.*udce9\.png'; rename"):
        datasets.image_folder(imagenet)


def test_a_folder_that_cannot_be_listed_is_refused(imagenet: Path, monkeypatch) -> None:
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("n15075141"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="n15075141"):
        datasets.image_folder(imagenet)


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "beagles" / "a.png", 0)
    (tmp_path / "subset").mkdir()
    for wordnet_id in ("n02088364", "n15075141"):
        (tmp_path / "subset" / wordnet_id).symlink_to(tmp_path / "elsewhere" / "beagles")
    assert datasets.image_folder(tmp_path / "subset").ids == ("n02088364/a.png", "n15075141/a.png")


def test_a_link_that_leads_round_is_refused(imagenet: Path) -> None:
    (imagenet / "n02088364" / "up").symlink_to(imagenet)
    with pytest.raises(ValueError, match=r"n02088364/up leads back to a folder that it lies in"):
        datasets.image_folder(imagenet)


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


def test_absent_classes_of_cifar10_are_named(tmp_path: Path) -> None:
    for name in ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse"):
        picture(tmp_path / "test" / name / "0.png", 0)
    with pytest.warns(UserWarning, match=r"no test images of ship, truck") as caught:
        assert len(datasets.cifar10(tmp_path)) == 8
    assert caught[0].filename == __file__


def test_an_archive_whose_names_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("test/cat/é.png", b"")
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace("é".encode(), b"\xff\xff"))
    with pytest.raises(ValueError, match=r"a\.zip is neither a folder nor a zip archive that can be read"):
        datasets.cifar10(tmp_path / "a.zip")


def test_missing_package_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"dipdefense\[demo\]"):
        datasets.packaged_images()
