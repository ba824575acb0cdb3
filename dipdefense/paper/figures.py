"""Common parts of the paper's figures of a single image.

They are the image, its attack and reconstruction, and the written files.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dipdefense.checks import operand_dtype
from dipdefense.classifiers import Classifier
from dipdefense.config import CONFIGS, DIPConfig
from dipdefense.evaluation import Setting, circumstances, command_line, open_subject
from dipdefense.evaluation.protocol import attack_named, condition_title, content_digest
from dipdefense.evaluation.report import png, reduced_setting
from dipdefense.files import write_atomically
from dipdefense.paper.plots import below, blank, caption
from dipdefense.paper.published import IMAGES, reductions
from dipdefense.reconstruct import Reconstruction, reconstruct
from dipdefense.seeds import derive_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image, before and after an attack on the undefended classifier.

    Attributes:
        classifier: on the device of the images.
        source: the data set's name.
        id: the image's.
        label: its class.
        condition: the attack's name, or "clean".
        seed: of the attack, the reconstruction and the saliency maps.
        clean: (1, C, H, W) in [0, 1].
        attacked: the same after the attack.
        circumstances: command, commit, hardware and versions, as they were when the image was opened.
    """

    classifier: Classifier
    source: str
    id: str
    label: int
    condition: str
    seed: int
    clean: Tensor
    attacked: Tensor
    circumstances: Mapping[str, Any]

    @property
    def attack(self) -> str:
        """The attack as captions have it."""
        return "no attack" if self.condition == "clean" else f"{condition_title(self.condition)}, defence-unaware"

    def category(self, label: int) -> str:
        """The name of a class."""
        names = self.classifier.categories
        return names[label] if label < len(names) else f"class {label}"

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) confidences in [0, 1]."""
        with torch.no_grad():
            scores: Tensor = self.classifier(images).float().softmax(dim=1)
        return scores

    def outcome(self, image: Tensor) -> dict[str, Any]:
        """The classifier's prediction of an image (1, C, H, W), for a record."""
        (scores,) = self.scores(image)
        predicted = int(scores.argmax())
        return {
            "confidence": scores[self.label].item(),
            "predicted": predicted,
            "predicted class": self.category(predicted),
            "predicted confidence": scores[predicted].item(),
        }


def add_example(to: argparse.ArgumentParser, *, attack: str) -> None:
    """Add the arguments of an ``Example``: source, image, attack and seed.

    ``attack`` is the default of ``--attack``.
    """
    command_line.add_source(to)
    add = to.add_argument
    add("--image", metavar="ID", help="id of the image (default: the first correctly classified one by the seed)")
    add("--attack", type=condition, default=attack, help="such as fgsm-5, bi-10 or clean (default: %(default)s)")
    add("--seed", type=command_line.seed, default=0, help="of the image, the attack and all noise (default: 0)")


def condition(text: str) -> str:
    """The name of one of the paper's attacks, or "clean"."""
    if text != "clean" and attack_named(text) is None:
        raise argparse.ArgumentTypeError(f"must be clean, or an attack and ε such as fgsm-5 or llci-10, got {text!r}")
    return text


def open_example(given: argparse.Namespace) -> Example:
    """Load the classifier, find the image, and attack it.

    Raises:
        ValueError: no image has this id, or none is classified correctly; or the classifier is not known.
        FileNotFoundError: there is no such data.
        ImportError: an optional package is missing.
    """
    # Before the work: a checkout may change meanwhile, but not what was imported from it.
    begun = circumstances(torch.device(given.device))
    names = ("data", "classifier", "weights", "device", "out")
    subject = open_subject(
        Setting(**{name: getattr(given, name) for name in names}, images=1, seeds=(given.seed,), progress=False)
    )
    index = subject.chosen.indices[0]
    if given.image is not None:
        if given.image not in subject.data.ids:
            like = difflib.get_close_matches(given.image, subject.data.ids, n=3, cutoff=0) or subject.data.ids[:3]
            raise ValueError(f"no image of {subject.source} has the id {given.image!r}; ids are such as {like}")
        index = list(subject.data.ids).index(given.image)
    found = subject.data.stack([index])
    name, clean, labels = found.ids[0], found.images.to(given.device), found.labels.to(given.device)
    attack = attack_named(given.attack)
    attacked = clean
    if attack is not None:
        # As in the tables, whose images of this seed these are.
        attacked = attack(subject.classifier, clean, labels, seed=[derive_seed(given.seed, given.attack, name)])
    return Example(
        classifier=subject.classifier, source=subject.source, id=name, label=int(labels[0]), condition=given.attack,
        seed=given.seed, clean=clean, attacked=attacked, circumstances=begun,
    )  # fmt: skip


def reconstructed(example: Example, config: DIPConfig, given: argparse.Namespace) -> Reconstruction:
    """The attacked image's reconstruction at every budget.

    It is that of a table with this seed. A progress bar shows the iterations.

    Raises:
        ValueError: it diverged.
    """
    seed = derive_seed(example.seed, "dip", example.id)
    with tqdm(total=given.budgets[-1], unit="iteration", desc="reconstruction", leave=False) as bar:
        run = reconstruct(
            example.attacked, budgets=given.budgets, config=config, seed=seed, precision=given.precision,
            backend=given.backend, on_iteration=bar.update,
        )  # fmt: skip
    if "diverged" in run.status:
        raise ValueError("the reconstruction diverged, and there is nothing to show; give another --seed")
    return run


def fitted(example: Example, given: argparse.Namespace) -> DIPConfig:
    """The network that the command line names, with this image's number of scales.

    Raises:
        ValueError: the image is too small for it.
    """
    config = CONFIGS[given.config]()
    return replace(config, scales=config.scales_for(*example.clean.shape[2:]))


def reduced(example: Example, config: DIPConfig, budgets: Sequence[int], *, largest: int) -> list[str]:
    """A warning if a setting falls short of or differs from the paper's; else empty."""
    found = reductions(config, images=IMAGES, budgets=(), shape=example.clean.shape[1:])
    if budgets[-1] < largest:
        found.append(f"{budgets[-1]} iterations at most instead of {largest}")
    return reduced_setting(found)


def described(example: Example) -> str:
    """Image, class, attack and classifier, in words."""
    return (
        f"{example.id} of {example.source} ({example.category(example.label)}), {example.attack}. "
        f"Classifier: {example.classifier.name}. Seed {example.seed}."
    )


def show(axes: Axes, image: Tensor, caption: str = "", *, title: str = "") -> None:
    """An image (C, H, W) in [0, 1] or a mask (1, H, W), with text below and above."""
    pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    axes.imshow(pixels if pixels.shape[2] > 1 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(caption, fontsize=8)
    axes.set_title(title, fontsize=9)


def panels(width: float, height: float, title: str, paragraphs: Sequence[str]) -> tuple[Figure, SubFigure]:
    """An empty figure with a title and paragraphs, and its part for panels below.

    ``width`` and ``height`` are in inches.

    Raises:
        ImportError: Matplotlib is missing.
    """
    figure = blank(width, height)
    part = below(figure)
    caption(figure, partial(part.suptitle, x=0.01, ha="left"), title, paragraphs)
    return figure, part


def shown(confidence: float) -> str:
    """A confidence for a caption.

    Example:
        >>> shown(0.9996), shown(0.0042), shown(1.8e-14)
        ('1.00', '0.004', '2e-14')
    """
    return f"{confidence:.2f}" if confidence >= 0.01 else f"{confidence:.1g}"


def record(example: Example, **measured: Any) -> dict[str, Any]:
    """Everything that a figure was made from and with, in types that JSON has."""
    return {
        "circumstances": example.circumstances,
        "classifier": example.classifier.name,
        "data": example.source,
        "image": example.id,
        "content": content_digest(example.clean[0].cpu(), example.label),
        "label": example.label,
        "class": example.category(example.label),
        "attack": example.condition,
        "seed": example.seed,
        "undefended": {"clean": example.outcome(example.clean), "attacked": example.outcome(example.attacked)},
        **measured,
    }


def reconstruction_record(
    example: Example, config: DIPConfig, given: argparse.Namespace, run: Reconstruction
) -> dict[str, Any]:
    """The reconstruction's settings, and the classifier's outcome at each budget."""
    return {
        "network": config.to_json(),
        "precision": str(operand_dtype(given.precision, example.clean.device)).removeprefix("torch."),
        "backend": run.backend,
        "outputs": [
            {"budget": budget, "loss": run.losses[budget - 1, 0].item(), **example.outcome(output)}
            for budget, output in zip(run.budgets, run.images, strict=True)
        ],
    }


def write(figure: Figure, told: Mapping[str, Any], *, folder: Path, name: str) -> tuple[Path, Path]:
    """Write the picture and its record, and print where they are.

    They are ``name``.png and ``name``.json, each written whole or not at all.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture, text = folder / f"{name}.png", folder / f"{name}.json"
    write_atomically(picture, png(figure))
    write_atomically(text, json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    print(f"written: {picture} and {text}")
    return picture, text
