"""The command line that the experiments' scripts share: its arguments, and errors of use before any work."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import torch

from dipdefense.config import Backend, DIPConfig

CONFIGS = {
    "paper": DIPConfig.paper,
    "compact": DIPConfig.compact,
    "architecture-1": DIPConfig.architecture_1,
    "architecture-2": DIPConfig.architecture_2,
}
"""The networks that a command line has a name for."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser for a script with this docstring."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_subject(to: argparse.ArgumentParser) -> None:
    """Add the arguments of a ``Setting``: images, classifier, seeds, device, batch and folder."""
    add = to.add_argument
    add("--data", type=Path, help="images by class: a folder such as IMAGENET/val, or CIFAR-10 (default: packaged)")
    add("--classifier", default="efficientnet-lite0", help="such as resnet18, the paper's (default: %(default)s)")
    add("--weights", type=Path, help="file with the classifier's weights (default: those it comes with)")
    add("--images", type=int, help="correctly classified images to take (the paper: 500)")
    add("--classes", type=int, help="random classes to take them from (the paper: 200; default: all)")
    add("--seed", type=int, nargs="+", default=[0], help="the first chooses the images, each repeats the defences")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    add("--batch", type=int, help="images at once (default: 32 on a GPU, 1 on a CPU)")
    add("--out", type=Path, default=Path("out"), help="folder of reports and stored outcomes (default: %(default)s)")


def add_reconstruction(to: argparse.ArgumentParser) -> None:
    """Add the arguments of the reconstruction: network, budgets, precision and backend."""
    add = to.add_argument
    add("--config", choices=CONFIGS, help="network of the reconstruction (default: paper on a GPU, else compact)")
    add("--budgets", type=int, nargs="+", metavar="ITERATIONS", help="ascending (the paper: 500 750 1000)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the reconstruction's convolutions")
    add("--backend", choices=get_args(Backend), default="torch", help="of the reconstruction (default: %(default)s)")


def subject_of(given: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a ``Setting`` that a command line gave."""
    return {
        "data": given.data,
        "classifier": given.classifier,
        "weights": given.weights,
        "images": given.images,
        "classes": given.classes,
        "seeds": tuple(dict.fromkeys(given.seed)),
        "device": given.device,
        "batch": given.batch,
        "out": given.out,
    }
