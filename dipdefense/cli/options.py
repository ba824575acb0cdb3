"""Options that several subcommands share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from dipdefense.cli.ending import EXIT_CODES

F = TypeVar("F", bound=Callable[..., Any])

CONFIG_NAMES = ("paper", "compact", "half-size", "architecture-1", "architecture-2")
BACKENDS = ("auto", "torch", "native", "cudagraphs", "triton")
PRECISIONS = ("auto", "fp32", "bf16")
RULES = ("variance", "trend")
# The names above are the library's, which would load torch; a test holds them together.

COUNT = click.IntRange(1, 2**31 - 1)
ITERATIONS = click.IntRange(1, 1_000_000)
SEED = click.IntRange(0, 2**63 - 1)


class _Path(click.Path):
    """A path that a file system can have.

    An empty word, which would be the current folder, is refused.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value) or "\0" in str(value):
            self.fail(f"{str(value)!r} is not a path.", param, ctx)
        return super().convert(value, param, ctx)


EXISTING, WRITTEN = _Path(exists=True, path_type=Path), _Path(path_type=Path)


class Command(click.Command):
    """A subcommand whose option ``--budgets`` takes all numbers that follow it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"epilog": EXIT_CODES, **kwargs})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its numbers: click takes one value for each."""
        if any("--budgets" in parameter.opts for parameter in self.params):
            args = _repeated("--budgets", args)
        return super().parse_args(ctx, args)


def _repeated(option: str, words: list[str]) -> list[str]:
    r"""The words with the option before each of the integers that follow it.

    Example:
        >>> _repeated("--budgets", ["in", "--budgets", "500", "750", "out"])
        ['in', '--budgets', '500', '--budgets', '750', 'out']
    """
    repeated: list[str] = []
    state = "elsewhere"
    for place, word in enumerate(words):
        if word == "--":
            return repeated + words[place:]
        if state == "in it" and word.isdecimal():
            repeated.append(option)
        state = "at it" if word == option else "in it" if state != "elsewhere" and word.isdecimal() else "elsewhere"
        repeated.append(word)
    return repeated


def network(function: F) -> F:
    """``--config``, ``--seed``, ``--precision``, ``--backend`` and ``--device``."""
    for option in (
        click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda where there is one]"),
        click.option(
            "--backend", type=click.Choice(BACKENDS), default="auto", show_default=True,
            help="torch's operators; native (a CPU with a C++ compiler); cudagraphs or triton (an NVIDIA GPU).",
        ),
        click.option(
            "--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True,
            help="Precision of the convolutions; auto takes bf16 on GPUs that have it and on CPUs with AMX.",
        ),
        click.option(
            "--seed", type=SEED, default=0, show_default=True,
            help="Seed of all random choices; an image file's own seed derives from it and the file's name.",
        ),
        click.option(
            "--config", type=click.Choice(CONFIG_NAMES),
            help="Networks.  [default: paper on a GPU, else compact, with 32 channels instead of 128]",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def classifier(function: F) -> F:
    """``--classifier`` and ``--weights``."""
    for option in (
        click.option("--weights", type=EXISTING, help="File with the classifier's weights.  [default: its own]"),
        click.option(
            "--classifier", "classifier_name", default="efficientnet-lite0", show_default=True,
            help="Classifier, such as resnet18, the paper's.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace files in OUT that have other settings or another origin."
)
full_names = click.option(
    "--full-names", is_flag=True, help="a.jpg becomes a.jpg.png, not a.png: for folders that hold a.jpg beside a.png."
)


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Turn an error into one sentence on stderr and exit code 2.

    Raises:
        click.UsageError: instead of a ValueError, TypeError, OSError or ImportError.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise click.UsageError(" ".join(str(error).split())) from error
