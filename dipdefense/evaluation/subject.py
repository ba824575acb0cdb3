"""The subject of a measurement: a classifier and its correctly classified images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dipdefense import classifiers
from dipdefense.checks import Precision, check_budgets, check_seed
from dipdefense.config import Backend, DIPConfig
from dipdefense.datasets import LabelledImages, cifar10, image_folder, packaged_images
from dipdefense.evaluation.protocol import Chosen, Images, choose


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The images, classifier, device and output folder of an experiment.

    Attributes:
        data: a folder of images by class, or None for the packaged ones; for a classifier of CIFAR-10, that data set.
        classifier: a name that ``dipdefense.classifiers.load`` knows.
        weights: a file with its weights, or None for those it comes with.
        images: how many correctly classified ones; None for as many as there are.
        classes: how many random classes; None for all.
        seeds: the first chooses the images and serves the attacks; each is a repetition of the random defences.
        device: "cpu" or "cuda", with a number if need be.
        batch: images at once; a matter of speed, up to rounding, but adaptive attacks take other random numbers for
            another batch, and a killed attack that is resumed with another begins anew.
        out: folder of the reports and of the stored outcomes.
        progress: whether to show a bar.

    Raises:
        TypeError, ValueError: a number is outside its range.
    """

    data: Path | None = None
    classifier: str = "efficientnet-lite0"
    weights: Path | None = None
    images: int | None = None
    classes: int | None = None
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"
    batch: int = 1
    out: Path = Path("out")
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that nothing could be measured with, before any work."""
        for name in ("images", "classes", "batch"):
            value = getattr(self, name)
            if not (value is None and name != "batch") and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not self.seeds:
            raise ValueError("seeds must have at least one seed, such as (0,); got none")
        check_seed(self.seeds)


@dataclass(frozen=True, kw_only=True)
class ReconstructionSetting(Setting):
    """An experiment behind the reconstruction.

    Attributes:
        config: the network.
        budgets: iterations at which the output is classified.
        precision: "auto", "fp32" or "bf16".
        backend: "auto", "torch", "native", "cudagraphs" or "triton".
    """

    config: DIPConfig
    budgets: tuple[int, ...]
    precision: Precision = "auto"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        """Refuse what could not be run."""
        super().__post_init__()
        check_budgets(self.budgets)


@dataclass(frozen=True)
class Subject:
    """A classifier and its images, opened.

    Attributes:
        classifier: on the setting's device.
        data: the whole data set.
        source: the data set's name in reports.
        chosen: the images of the experiment, in its order.
        shape: (channels, height, width) of each image.
    """

    classifier: classifiers.Classifier
    data: Images
    source: str
    chosen: Chosen
    shape: tuple[int, int, int]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the chosen images, in order."""
        return tuple(self.data.ids[index] for index in self.chosen.indices)

    def fitted(self, config: DIPConfig) -> DIPConfig:
        """The configuration with the number of scales that these images get.

        Raises:
            ValueError: the images are too small for it.
        """
        return replace(config, scales=config.scales_for(*self.shape[1:]))


def open_subject(setting: Setting) -> Subject:
    """Load the classifier, open the data set, and choose the images.

    Raises:
        ValueError: there are fewer correctly classified images, or classes, than asked for; or the classifier or its
            weights are not known.
        FileNotFoundError: there is no such data.
        ImportError: an optional package is missing.
    """
    classifier = classifiers.load(setting.classifier, weights=setting.weights, device=setting.device)
    source, data = open_data(setting.data, classifier)
    chosen = choose(
        data, classifier, images=setting.images, classes=setting.classes, seed=setting.seeds[0], device=setting.device
    )
    _, channels, height, width = data.stack(chosen.indices[:1]).images.shape
    return Subject(classifier, data, source, chosen, (channels, height, width))


def open_data(path: Path | None, classifier: classifiers.Classifier) -> tuple[str, Images]:
    """The data set of the kind the classifier is for, behind its name in reports.

    Args:
        path: a folder of images by class, or CIFAR-10; None for the packaged images.
        classifier: has the categories, the resize and the crop.

    Raises:
        FileNotFoundError, ValueError: there is no such data.
        ImportError: the package with the images is missing.
    """
    small = classifier.categories == classifiers.CIFAR10_CATEGORIES
    if path is None:
        packaged = packaged_images("cifar10" if small else "imagenet", preprocess=classifier.preprocess)
        return f"packaged {'CIFAR-10' if small else 'ImageNet'} images", InMemory(packaged)
    reader = cifar10 if small else image_folder
    return path.resolve().name, reader(path, preprocess=classifier.preprocess)


class InMemory:
    """Images that are in memory already, as a data set.

    Attributes:
        ids: of the images.
        labels: their class indices.
    """

    def __init__(self, images: LabelledImages) -> None:
        self.ids = images.ids
        self.labels: list[int] = images.labels.tolist()
        self._images = images

    def stack(self, indices: Sequence[int]) -> LabelledImages:
        """The images at these places."""
        chosen = list(indices)
        ids = tuple(self.ids[index] for index in chosen)
        return replace(self._images, ids=ids, images=self._images.images[chosen], labels=self._images.labels[chosen])
