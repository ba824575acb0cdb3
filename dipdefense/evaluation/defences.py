"""The defences to compare: none, randomisation, a filter, and the reconstruction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dipdefense.checks import Precision, check_backend, operand_dtype
from dipdefense.config import Backend, DIPConfig
from dipdefense.purifier import DIPPurifier
from dipdefense.randomization import RandomizationDefence
from dipdefense.reduction import enlarged, reduced
from dipdefense.stopping import Rule, RuleName, check_stopping, stoppable


class Outcome(NamedTuple):
    """The outcome of a batch at one budget.

    Attributes:
        budget: iterations or passes.
        scores: (N, classes) logits or log probabilities.
        losses: (N,) mean squared errors of the reconstructions, or None.
        status: one an image.
        seconds: for the whole batch.
        iterations: one an image, those of its fit where a rule could end it before the budget; else None.
    """

    budget: int
    scores: Tensor
    losses: Tensor | None
    status: Sequence[str]
    seconds: float
    iterations: Sequence[int] | None = None


@dataclass(frozen=True)
class Defence:
    """A named way of classifying.

    Attributes:
        name: as records have it.
        budgets: ascending.
        classify: from (classifier, images, budgets, one seed an image) to the outcome at each of these budgets.
        random: whether the seeds matter.
        settings: everything beside budgets and seeds that decides its outcomes; it becomes part of a run's
            configuration.
        family: the defence whose seeds it shares, for a comparison on the same random numbers; by default it has its
            own.
    """

    name: str
    budgets: tuple[int, ...]
    classify: Callable[[nn.Module, Tensor, Sequence[int], Sequence[int]], Iterator[Outcome]]
    random: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""


def undefended() -> Defence:
    """The classifier alone."""

    def classify(classifier: nn.Module, images: Tensor, *_: Sequence[int]) -> Iterator[Outcome]:
        started = clock(images)
        scores = classifier(images)
        yield Outcome(0, scores, None, ["ok"] * len(images), clock(images) - started)

    return Defence("none", (0,), classify, random=False)


def randomisation(passes: tuple[int, ...]) -> Defence:
    """The randomisation of Xie et al. 2017.

    The budget is the number of passes that are averaged; more passes begin with those of fewer.
    """

    def classify(
        classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[Outcome]:
        for budget in budgets:
            started = clock(images)
            scores = RandomizationDefence(classifier, passes=budget, seed=seeds)(images)
            yield Outcome(budget, scores, None, ["ok"] * len(images), clock(images) - started)

    return Defence("randomisation", passes, classify)


def low_pass(factors: tuple[int, ...]) -> Defence:
    """A control without a network: the image reduced, then enlarged again.

    The budgets are the factors: an image is reduced to 1/factor of its height and width. The control shows what a
    smoother image alone achieves, in next to no time.
    """

    def classify(classifier: nn.Module, images: Tensor, budgets: Sequence[int], *_: Sequence[int]) -> Iterator[Outcome]:
        for factor in budgets:
            started = clock(images)
            size = images.shape[2:]
            smaller = reduced(images, [-(-side // factor) for side in size])
            scores = classifier(enlarged(smaller, size).to(images.dtype))
            yield Outcome(factor, scores, None, ["ok"] * len(images), clock(images) - started)

    return Defence("low-pass", factors, classify, random=False)


def deep_image_prior(
    budgets: tuple[int, ...],
    *,
    config: DIPConfig,
    precision: Precision = "auto",
    backend: Backend = "auto",
    shape: Sequence[int] = (3, 224, 224),
    batch: int = 1,
    device: torch.device | str = "cpu",
    stopping: RuleName | Rule | None = None,
) -> Defence:
    """The reconstruction of Kattamis et al. 2019, with one run for all budgets.

    Each budget is billed for its iterations.

    Args:
        budgets: iterations, ascending.
        config: with its number of scales; see ``Subject.fitted``.
        precision: "auto", "fp32" or "bf16".
        backend: of the reconstruction.
        shape: of an image, (C, H, W); a backend is chosen for it where the device has a choice.
        batch: images at once; likewise.
        device: where it will run, which decides the precision.
        stopping: a rule that ends each image's fit by itself, or None for fixed budgets; see ``dipdefense.stopping``.

    Raises:
        ValueError: the backend or the precision does not run on the device, or the backend cannot stop early.
    """
    rule = check_stopping(stopping)
    backend = backend if rule is None else stoppable(backend)
    check_backend(backend, torch.device(device), config)
    operands = operand_dtype(precision, torch.device(device))
    # Never "auto": another precision or backend has other roundings or noise, and so its outcomes are another run's.
    if backend == "auto":
        like = torch.full((batch, *shape), 0.5, device=device)
        purifier = DIPPurifier(budgets[-1], config=config, precision=precision, backend=backend, batch_size=batch)
        backend = purifier.backend_for(like)
    settings = {"dip": config.to_json(), "precision": str(operands).removeprefix("torch."), "backend": backend}
    if rule is not None:
        # Not named without a rule: the runs of fixed budgets that are stored would be other runs.
        settings["stopping"] = rule.settings

    def classify(
        classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[Outcome]:
        # The batch in one piece, however much memory is free today: in other pieces, sums would be rounded otherwise.
        purifier = DIPPurifier(
            budgets[-1], config=config, precision=precision, backend=backend, batch_size=len(images), stopping=rule
        )
        started = clock(images)
        run = purifier.reconstruct(images, budgets=budgets, seed=seeds)
        fitting = clock(images) - started
        for budget in run.budgets:
            # Of this budget, not of the whole run: a network that diverges at 900 was still fine at 500.
            part = run.at(budget)
            started = clock(images)
            scores = classifier(part.images[0])
            share = sum(part.iterations) / max(1, sum(run.iterations))
            seconds = fitting * share + clock(images) - started
            iterations = None if rule is None else part.iterations
            yield Outcome(budget, scores, part.final_losses, part.status, seconds, iterations)

    return Defence("dip", budgets, classify, settings=settings)


def clock(images: Tensor) -> float:
    """Seconds, once the device has done what it was told."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter()
