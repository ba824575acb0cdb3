"""Conditions, seeds and the choice of images: what any defence is measured on.

A condition is what an image goes through before the defence. Those with a name here are the paper's attacks at any
strength, crafted on the undefended classifier, and noise of the same norm; an experiment may have others of its own.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn

from dipdefense.attacks import Attack, AttackName
from dipdefense.datasets import LabelledImages
from dipdefense.evaluation.provenance import digest
from dipdefense.files import UnreadableImage
from dipdefense.seeds import derive_seed as derive_seed

DEFENCES = ("none", "randomisation", "low-pass", "dip")
"""The classifier alone, the baseline of Xie et al. 2017, a control without a network, and the reconstruction, in the
order of a table's columns."""

_NAMES = {name.lower(): name for name in get_args(AttackName)}
_CONDITION = re.compile(rf"({'|'.join(_NAMES)})-(\d+(?:\.\d+)?)(-8bit)?")


class Condition(Protocol):
    """A condition other than "clean", such as an ``Attack``."""

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, /, *, batch_size: int, seed: Sequence[int]
    ) -> Tensor:
        """The images as the defence gets them."""


def condition_name(attack: Attack | None) -> str:
    """The name of an attack in records: "clean" for none.

    Example:
        >>> condition_name(Attack("BI", 10))
        'bi-10'
    """
    if attack is None:
        return "clean"
    return f"{attack.name.lower()}-{digits(attack.epsilon)}{'-8bit' if attack.rounded else ''}"


def digits(epsilon: float) -> str:
    """A number in as few digits as read back to it.

    Example:
        >>> digits(8.0), digits(4 / 3)
        ('8', '1.3333333333333333')
    """
    short = f"{epsilon:g}".replace("e+", "e")
    return short if float(short) == epsilon else repr(float(epsilon)).replace("e+", "e")


def attack_named(condition: str) -> Attack | None:
    """The attack with this ``condition_name``; None for others, such as "clean".

    Example:
        >>> str(attack_named("fgsm-2-8bit"))
        'FGSM ε=2 in 8 bits'
    """
    match = _CONDITION.fullmatch(condition)
    if match is None:
        return None
    name, epsilon, rounded = match.groups()
    if not 1 <= float(epsilon) <= 255:
        return None
    return Attack(_NAMES[name], float(epsilon), rounded=bool(rounded))


def condition_title(condition: str) -> str:
    """The title of a condition in reports.

    Example:
        >>> condition_title("fgsm-5"), condition_title("noise-10")
        ('FGSM ε=5', 'random noise ε=10 (control)')
    """
    attack = attack_named(condition)
    if attack is None:
        return {"average": "average of the attacks"}.get(condition, condition)
    return f"random {attack} (control)" if attack.name == "noise" else str(attack)


def condition_order(condition: str) -> tuple[int, int, float, str]:
    """The place of a condition in tables.

    The order is clean, attacks, their average, noise, attacks in 8 bits, and others.

    Example:
        >>> sorted(["noise-2", "bi-10", "fgsm-10", "average", "fgsm-5", "clean"], key=condition_order)
        ['clean', 'fgsm-5', 'fgsm-10', 'bi-10', 'average', 'noise-2']
    """
    attack = attack_named(condition)
    if attack is None:
        return {"clean": 0, "average": 2}.get(condition, 5), 0, 0.0, condition
    group = 4 if attack.rounded else 3 if attack.name == "noise" else 1
    return group, get_args(AttackName).index(attack.name), attack.epsilon, condition


class Images(Protocol):
    """A data set as a run needs it, such as ``ImageFiles``.

    It has ids and classes at once, and the pixels of some images when asked.
    """

    @property
    def ids(self) -> Sequence[str]:
        """The name of each image in records."""

    @property
    def labels(self) -> Sequence[int]:
        """The class index of each."""

    def stack(self, indices: Sequence[int]) -> LabelledImages:
        """The images at these places."""


class Chosen(NamedTuple):
    """The images of a run, in its order.

    Attributes:
        indices: their places in the data set.
        tried: images that were classified to find them.
        contents: ``content_digest`` of each.
        skipped: ids of the images on the way that could not be read.
    """

    indices: tuple[int, ...]
    tried: int
    contents: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def content_digest(image: Tensor, label: int) -> str:
    """A digest of an image, as the classifier gets it, and of its label.

    These decide the image's outcomes, beside its id.

    Args:
        image: (C, H, W) on the CPU.
        label: its class index.
    """
    described = f"{label} {tuple(image.shape)} {image.dtype}\n".encode()
    return digest([described, image.contiguous().numpy().tobytes()])


def read(data: Images, indices: Sequence[int]) -> tuple[LabelledImages | None, list[int], dict[str, UnreadableImage]]:
    """Those of the images that can be read.

    Returns:
        The images, or None where there are none; their places in the data set; and the errors of the others, by id.
    """
    errors: dict[str, UnreadableImage] = {}
    try:
        return (data.stack(indices) if indices else None), list(indices), errors
    except UnreadableImage:
        readable = []
        for index in indices:
            try:
                data.stack([index])
                readable.append(index)
            except UnreadableImage as error:
                errors[data.ids[index]] = error
    return (data.stack(readable) if readable else None), readable, errors


def seeded_order(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order that depends on the seed and on each name alone.

    A name that is added or taken away moves no other past a third, so two copies of a data set that differ by a file
    agree on all others, and stored outcomes of these are found again.
    """
    return sorted(names, key=lambda name: (derive_seed(seed, "order", name), name))


def choose(
    data: Images,
    classifier: nn.Module,
    *,
    images: int | None,
    classes: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch: int = 32,
) -> Chosen:
    """Take correctly classified images of random classes, in a random order.

    Kattamis et al. 2019, appendix A.2: 500 such images of 200 classes. Asking for more later gives the same ones
    first. An image that cannot be read is skipped with a warning.

    Args:
        data: where from.
        classifier: from images in [0, 1] to logits.
        images: how many; None for as many as there are.
        classes: how many random classes; None for all.
        seed: of the classes and the order.
        device: where the classifier is.
        batch: images classified at once.

    Raises:
        ValueError: ``images`` is below 1, or there are fewer classes, or fewer correctly classified images,
            than asked for.
    """
    if images is not None and images < 1:
        raise ValueError(f"images must be at least 1, or None for as many as there are; got {images}")
    labels = [int(label) for label in data.labels]
    present = seeded_order({str(label) for label in labels}, seed)
    if classes is not None and not 1 <= classes <= len(present):
        raise ValueError(f"{classes} classes were asked for, but the data set has images of {len(present)}")
    allowed = {int(label) for label in present[:classes]}
    place = {name: index for index, name in enumerate(data.ids)}
    if len(place) != len(labels):
        raise ValueError("the images of a data set must have different ids, but some of these share one")
    order = [place[name] for name in seeded_order(place, seed) if labels[place[name]] in allowed]
    if images is not None and images > len(order):
        raise ValueError(
            f"{images} images were asked for, but the {len(allowed)} classes have {len(order)}; ask for fewer, or for "
            "more classes, or give more data"
        )

    found: dict[int, str] = {}
    skipped: list[str] = []
    for start in range(0, len(order), batch):
        candidates, readable, errors = read(data, order[start : start + batch])
        for name, error in errors.items():
            warnings.warn(f"{error}; it is skipped", stacklevel=2)
            skipped.append(name)
        if candidates is None:
            continue
        with torch.inference_mode():
            scores = classifier(candidates.images.to(device))
            # No output that is not finite is right, though argmax takes NaN for the greatest score.
            predictions = scores.argmax(dim=1).where(scores.isfinite().all(dim=1), -1).tolist()
        for index, image, prediction in zip(readable, candidates.images, predictions, strict=True):
            if prediction == labels[index]:
                found[index] = content_digest(image, labels[index])
            if len(found) == images:
                tried = order.index(index) + 1
                # A batch may reach further.
                passed = {data.ids[other] for other in order[:tried]}
                return Chosen(
                    tuple(found), tried, tuple(found.values()), tuple(name for name in skipped if name in passed)
                )
    if images is not None or not found:
        unread = f", and {len(skipped)} could not be read" if skipped else ""
        fewer = f"ask for --images {len(found)} or fewer, or " if found else "ask "
        raise ValueError(
            f"{images or 'some'} correctly classified images were asked for, but of the {len(order)} images in "
            f"{len(allowed)} classes only {len(found)} are classified correctly{unread}; {fewer}for more "
            "classes, or give more data"
        )
    return Chosen(tuple(found), len(order), tuple(found.values()), tuple(skipped))
