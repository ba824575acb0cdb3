"""What is measured on what: the conditions of each table, the choice of images, the seeds, and the command line.

The attacks here are the paper's: crafted on the undefended classifier, defence-unaware.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import torch
from torch import nn

from dipdefense.attacks import TABLE_2, Attack
from dipdefense.checks import Precision, check_budgets
from dipdefense.config import PAPER_BUDGETS, Backend, DIPConfig
from dipdefense.datasets import LabelledImages
from dipdefense.paper.published import CLASSES, IMAGES

CONFIGS = {
    "paper": DIPConfig.paper,
    "compact": DIPConfig.compact,
    "architecture-1": DIPConfig.architecture_1,
    "architecture-2": DIPConfig.architecture_2,
}

DEFENCES = ("none", "randomisation", "dip")
"""What images are classified behind: nothing, the baseline of Xie et al. 2017, or the reconstruction."""

PASSES = (1, 30)
"""Passes of randomisation: one draw an image, and as many as the submission of Xie et al. 2017 averages."""


def condition_name(attack: Attack | None) -> str:
    """What records call an attack: "clean" for none.

    Example:
        >>> condition_name(Attack("BI", 10))
        'bi-10'
    """
    if attack is None:
        return "clean"
    return f"{attack.name.lower()}-{attack.epsilon:g}{'-8bit' if attack.rounded else ''}"


_CONTROLS = tuple(Attack("noise", epsilon) for epsilon in (2, 5, 10))
_ROUNDED = tuple(replace(attack, rounded=True) for attack in TABLE_2)
CONDITIONS: dict[str, Attack | None] = {
    condition_name(attack): attack for attack in (None, *TABLE_2, *_CONTROLS, *_ROUNDED)
}
"""Everything that an image may have gone through: nothing, an adversary of Table 2, noise of the same norm, or an
adversary of Table 2 whose images were rounded to 8 bits."""

ADVERSARIES = tuple(condition_name(attack) for attack in TABLE_2)
"""The conditions that Table 2 averages over."""

TABLES: dict[int, tuple[str, ...]] = {
    1: ("clean", "bi-10"),
    2: ("clean", *ADVERSARIES, *(condition_name(attack) for attack in _CONTROLS)),
}
"""The conditions of each table. Table 1 has one attack beside its clean images, for a defence's accuracy on those alone
says nothing; both tables share their outcomes, so it costs nothing twice."""


def condition_title(condition: str) -> str:
    """What a report calls a condition.

    Example:
        >>> condition_title("fgsm-5"), condition_title("noise-10")
        ('FGSM ε=5', 'random noise ε=10 (control)')
    """
    attack = CONDITIONS.get(condition)
    if attack is None:
        return {"average": "average of the attacks"}.get(condition, condition)
    return f"random {attack} (control)" if attack.name == "noise" else str(attack)


class Images(Protocol):
    """A data set as a run needs it, such as ``ImageFiles``: ids and classes at once, pixels of some when asked."""

    @property
    def ids(self) -> Sequence[str]:
        """What records call each image."""

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
    """

    indices: tuple[int, ...]
    tried: int


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on the parts alone: not on the process, the platform or the Python version.

    A run gives each draw of a defence the seed of (its seed, the defence, the image), whatever the attack. So an image
    meets the same network and the same noise clean and attacked: the difference between two conditions is the
    attack's and not the draw's, each condition by itself sees as many independent draws as there are images, and
    neither the order of the work nor the batch matters.

    Example:
        >>> derive_seed(0, "dip", "n01440764/1.JPEG") == derive_seed("0", "dip", "n01440764/1.JPEG")
        True
    """
    # The unit separator keeps (1, 23) from (12, 3).
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded_order(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order that depends on the seed and on each name alone.

    A name that is added or taken away moves no other past a third, so two copies of a data set that differ by a file
    still agree on nearly all.
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
    """Take random classes, and of those the first images in a random order that the classifier gets right.

    Kattamis et al. 2019, appendix A.2: 500 such images of 200 classes. Asking for more later gives the same ones
    first.

    Args:
        data: where from.
        classifier: from images in [0, 1] to logits.
        images: how many; None for as many as there are.
        classes: how many random classes; None for all.
        seed: of the classes and the order.
        device: where the classifier is.
        batch: images classified at once.

    Raises:
        ValueError: there are fewer classes, or fewer correctly classified images, than asked for.
    """
    labels = [int(label) for label in data.labels]
    present = seeded_order({str(label) for label in labels}, seed)
    if classes is not None and not 1 <= classes <= len(present):
        raise ValueError(f"{classes} classes were asked for, but the data set has images of {len(present)}")
    allowed = {int(label) for label in present[:classes]}
    place = {name: index for index, name in enumerate(data.ids)}
    if len(place) != len(labels):
        raise ValueError("the images of a data set must have different ids, but some of these share one")
    order = [place[name] for name in seeded_order(place, seed) if labels[place[name]] in allowed]

    found: list[int] = []
    for start in range(0, len(order), batch):
        candidates = order[start : start + batch]
        with torch.inference_mode():
            predictions = classifier(data.stack(candidates).images.to(device)).argmax(dim=1).tolist()
        for tried, (index, prediction) in enumerate(zip(candidates, predictions, strict=True), start=start + 1):
            if prediction == labels[index]:
                found.append(index)
            if len(found) == images:
                return Chosen(tuple(found), tried)
    if images is not None or not found:
        raise ValueError(
            f"{images or 'some'} correctly classified images were asked for, but of the {len(order)} images in "
            f"{len(allowed)} classes the classifier gets only {len(found)} right; ask for --images {len(found)} or "
            "fewer, or for more classes, or give more data"
        )
    return Chosen(tuple(found), len(order))


def network(configuration: Mapping[str, Any]) -> DIPConfig:
    """The reconstruction's network in a stored configuration, with the tuples that JSON made lists of."""
    return DIPConfig.from_json(configuration["dip"])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One table, as a command line asks for it.

    Attributes:
        table: 1 or 2.
        data: a folder of images by class, or None for the packaged ones; for a classifier of CIFAR-10, that data set.
        classifier: a name that ``dipdefense.classifiers.load`` knows.
        weights: a file with its weights, or None for those it comes with.
        images: how many correctly classified ones; None for as many as there are.
        classes: how many random classes; None for all.
        config: the network of the reconstruction.
        budgets: iterations.
        seeds: the first chooses the images; each is a draw of the defences.
        conditions: keys of ``CONDITIONS``.
        defences: of ``DEFENCES``.
        device: "cpu" or "cuda", with a number if need be.
        precision: "auto", "fp32" or "bf16".
        backend: "torch"; or, on an NVIDIA GPU, "cudagraphs" or "triton".
        batch: images worked on at once; a matter of speed, up to rounding.
        out: folder of the reports and of the stored outcomes.
        progress: whether to show what is going on.
    """

    table: int
    data: Path | None
    classifier: str
    weights: Path | None
    images: int | None
    classes: int | None
    config: DIPConfig
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    conditions: tuple[str, ...]
    defences: tuple[str, ...]
    device: str
    precision: Precision
    backend: Backend
    batch: int
    out: Path
    progress: bool = True


def parse_arguments(*, table: int, description: str, arguments: Sequence[str] | None = None) -> Setting:
    """The setting that a command line asks for; what it leaves open follows from the device.

    A GPU gets the paper's network and budgets. A CPU gets a reduced setting that takes minutes, and every report of
    it says so.

    Args:
        table: 1 or 2.
        description: of the script, for ``--help``.
        arguments: instead of the process's own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", type=Path, help="images by class: a folder such as IMAGENET/val, or CIFAR-10 (default: packaged)")
    add("--classifier", default="efficientnet-lite0", help="such as resnet18, the paper's (default: %(default)s)")
    add("--weights", type=Path, help="file with the classifier's weights (default: those it comes with)")
    add("--images", type=int, help="correctly classified images to take (the paper: 500)")
    add("--classes", type=int, help="random classes to take them from (the paper: 200; default: all)")
    add("--config", choices=CONFIGS, help="network of the reconstruction (default: paper on a GPU, else compact)")
    add("--budgets", type=int, nargs="+", metavar="ITERATIONS", help="ascending (the paper: 500 750 1000)")
    add("--seed", type=int, nargs="+", default=[0], help="the first chooses the images, each is a draw of the defences")
    add("--conditions", nargs="+", choices=CONDITIONS, metavar="CONDITION", help=f"of {', '.join(CONDITIONS)}")
    add("--defences", nargs="+", choices=DEFENCES, default=DEFENCES, help="default: %(default)s")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the reconstruction's convolutions")
    add("--backend", choices=get_args(Backend), default="torch", help="of the reconstruction (default: %(default)s)")
    add("--batch", type=int, help="images worked on at once (default: 32 on a GPU, 1 on a CPU)")
    add("--out", type=Path, default=Path("out"), help="folder of reports and stored outcomes (default: %(default)s)")
    given = parser.parse_args(arguments)
    parser.set_defaults(**_defaults(table, torch.device(given.device), packaged=given.data is None))
    given = parser.parse_args(arguments)
    return Setting(
        table=table,
        data=given.data,
        classifier=given.classifier,
        weights=given.weights,
        images=given.images,
        classes=given.classes,
        config=CONFIGS[given.config](),
        budgets=check_budgets(given.budgets),
        seeds=tuple(dict.fromkeys(given.seed)),
        conditions=tuple(name for name in CONDITIONS if name in given.conditions),
        defences=tuple(name for name in DEFENCES if name in given.defences),
        device=given.device,
        precision=given.precision,
        backend=given.backend,
        batch=given.batch,
        out=given.out,
    )


def _defaults(table: int, device: torch.device, *, packaged: bool) -> dict[str, Any]:
    """What a command line leaves open."""
    if device.type != "cpu":
        images = {} if packaged else {"images": IMAGES, "classes": CLASSES}
        return {"config": "paper", "budgets": PAPER_BUDGETS, "conditions": TABLES[table], "batch": 32} | images
    # Under ten minutes on two cores, where an iteration takes about a tenth of a second.
    budgets, conditions = {
        1: ((250, 500, 750), TABLES[1]),
        2: ((100, 200, 300), ("clean", *ADVERSARIES, "noise-10")),
    }[table]
    return {"config": "compact", "budgets": budgets, "conditions": conditions, "batch": 1, "images": 2}
