"""The command line that the experiments' scripts share, and how a script ends.

Usage errors come before any work.

Example:
    >>> given = parser("An experiment.", add_subject, add_reconstruction)
    >>> given.parse_args(["--images", "20", "--device", "cpu"]).images
    20
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Never, get_args

import torch

from dipdefense import arguments
from dipdefense.checks import check_backend, check_budgets, operand_dtype
from dipdefense.config import CONFIGS as CONFIGS
from dipdefense.config import Backend
from dipdefense.evaluation.exports import ExportError
from dipdefense.evaluation.records import Run
from dipdefense.evaluation.store import StoreError
from dipdefense.stopping import RuleName, stoppable

_LARGEST_COUNT, _LARGEST_SEED = 2**31 - 1, 2**63 - 1


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Never:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help lists the arguments)\n")


def parser(description: str | None, *groups: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    """A parser for a script.

    Args:
        description: the script's docstring.
        groups: ``add_source`` or ``add_subject``; ``add_reconstruction`` or its parts; ``add_stopping``.
    """
    made = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for add in groups:
        add(made)
    return made


def add_source(to: argparse.ArgumentParser) -> None:
    """Add the arguments of the data set, classifier, device and output folder."""
    add = to.add_argument
    add("--data", type=existing, help="images by class: a folder such as IMAGENET/val, or CIFAR-10 (default: packaged)")
    add("--classifier", default="efficientnet-lite0", help="such as resnet18, the paper's (default: %(default)s)")
    add("--weights", type=existing_file, help="file with the classifier's weights (default: those it comes with)")
    here = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=device, default=here, help="cpu, cuda or cuda:N (default here: %(default)s)")
    default = Path("out")
    add("--out", type=folder, default=default, help="folder of reports and stored outcomes (default: %(default)s)")


def add_subject(to: argparse.ArgumentParser) -> None:
    """Add the arguments of a ``Setting``, among them those of ``add_source``."""
    add_source(to)
    add = to.add_argument
    add("--images", type=count, help="correctly classified images to take (the paper: 500)")
    add("--classes", type=count, help="random classes to take them from (the paper: 200; default: all)")
    add("--seed", type=seed, nargs="+", default=[0], help="the first chooses the images, each repeats the defences")
    add("--batch", type=count, help="images at once (default: 32 on a GPU, 1 on a CPU)")


def add_reconstruction(to: argparse.ArgumentParser) -> None:
    """Add the reconstruction's arguments: network, budgets, precision and backend."""
    add_network(to)
    add_budgets(to)
    add_fitting(to)


def add_network(to: argparse.ArgumentParser) -> None:
    """Add the network of the reconstruction."""
    add = to.add_argument
    add("--config", choices=CONFIGS, help="network of the reconstruction (default: paper on a GPU, else compact)")


def add_budgets(to: argparse.ArgumentParser) -> None:
    """Add the budgets of the reconstruction."""
    add = to.add_argument
    add("--budgets", type=count, nargs="+", metavar="ITERATIONS", help="ascending (the paper: 500 750 1000)")


def add_fitting(to: argparse.ArgumentParser) -> None:
    """Add the arguments of how the networks are fitted: precision and backend."""
    add_precision(to)
    add = to.add_argument
    add("--backend", choices=get_args(Backend), default="auto", help="of the reconstruction (default: %(default)s)")


def add_precision(to: argparse.ArgumentParser) -> None:
    """Add the precision of the reconstruction."""
    add = to.add_argument
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the reconstruction's convolutions")


def add_stopping(to: argparse.ArgumentParser) -> None:
    """Add the rule that may end an image's fit before its budget."""
    add = to.add_argument
    add("--stopping", choices=get_args(RuleName), help="end each image's fit by itself (default: fixed budgets)")


def parse(
    made: argparse.ArgumentParser,
    defaults: Callable[[argparse.Namespace], dict[str, Any]],
    arguments: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Parse, fill in the defaults, and refuse what does not fit together.

    Args:
        made: from ``parser``.
        defaults: from the arguments as given to the values of those that were left out.
        arguments: instead of the process's own.

    Raises:
        SystemExit: 2, after one line on stderr, if the arguments cannot be used.
    """
    made.set_defaults(**defaults(made.parse_args(arguments)))
    given = made.parse_args(arguments)
    try:
        folder(given.out)
        if "budgets" in given:
            check_budgets(given.budgets)
        if "backend" in given:
            check_backend(given.backend, torch.device(given.device))
        if "precision" in given:
            operand_dtype(given.precision, torch.device(given.device))
        if getattr(given, "stopping", None):
            stoppable(given.backend)
    except (ValueError, argparse.ArgumentTypeError) as error:
        made.error(str(error))
    return given


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


def reconstruction_of(given: argparse.Namespace) -> dict[str, Any]:
    """The reconstruction's arguments that a command line gave, named as in settings."""
    return {
        "config": CONFIGS[given.config](),
        "budgets": tuple(given.budgets),
        "precision": given.precision,
        "backend": given.backend,
    }


def count(text: str) -> int:
    """An integer of at least 1."""
    return _integer(text, 1, _LARGEST_COUNT)


def seed(text: str) -> int:
    """An integer in [0, 2**63)."""
    return _integer(text, 0, _LARGEST_SEED)


def strength(text: str) -> float:
    """A positive finite number: an attack's ε."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def device(text: str) -> str:
    """The name of a device that this machine has."""
    try:
        arguments.device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def existing(text: str) -> Path:
    """The path of a file or folder that exists."""
    try:
        exists = text != "" and Path(text).exists()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read: {error.strerror}") from error
    if not exists:
        raise argparse.ArgumentTypeError(f"there is no file or folder {text!r}")
    return Path(text)


def existing_file(text: str) -> Path:
    """The path of a file that exists."""
    if not existing(text).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file")
    return Path(text)


def folder(text: str | Path) -> Path:
    """A folder that can be written to, or can be made."""
    path = Path(text)
    try:
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        # The permissions alone do not tell: a file system may be read-only, and root may do everything else.
        with tempfile.TemporaryFile(dir=nearest):
            return path
    except OSError as error:
        raise argparse.ArgumentTypeError(f"the folder {str(path)!r} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def script(store: Path | None) -> Iterator[None]:
    """End a script in one sentence if it is interrupted or a file cannot be used.

    Args:
        store: the file of the outcomes, from which the same command resumes; None for a script that stores none.

    Raises:
        SystemExit: 130 after SIGINT (Ctrl-C), 143 after SIGTERM, 1 where a store, an export or a report cannot be read
            or written.
    """

    def terminate(*_: object) -> Never:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    resumes = "The same command begins anew."
    if store is not None:
        resumes = f"The outcomes so far are in {store}; the same command resumes from there."

    def stopped() -> str:
        return resumes if store is None or store.exists() else "Nothing was stored yet."

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            yield
    except KeyboardInterrupt:
        _end(130, f"Interrupted. {stopped()}")
    except _TerminatedError:
        _end(143, f"Terminated. {stopped()}")
    except (StoreError, ExportError) as error:
        _end(1, f"error: {error}")
    except OSError as error:
        _end(1, f"error: {error}. {stopped()}")
    finally:
        signal.signal(signal.SIGTERM, before)


def finish(files: Sequence[Path], store: Path, runs: Iterable[Run]) -> None:
    """Print a written report, where its files are, and how many images were skipped.

    Args:
        files: that were written; the first is the report.
        store: the file of the outcomes.
        runs: that the report is of.
    """
    print(files[0].read_text(encoding="utf-8"))
    print("written:", *files, f"and {store}")
    if skipped := {image for run in runs for image in run.skipped}:
        print(f"{len(skipped)} images could not be read and were skipped", file=sys.stderr)


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """End a script in one sentence if its data, classifier or images are refused.

    Raises:
        SystemExit: 2 instead of a ValueError, OSError or ImportError.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        _end(2, f"error: {error}")


class _TerminatedError(BaseException):
    """SIGTERM came."""


def _end(code: int, sentence: str) -> Never:
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    raise SystemExit(code) from None


def _integer(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be an integer from {low} to {high}, got {text!r}")
    return value
