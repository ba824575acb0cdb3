"""Conditions × defences × budgets over images, a batch at a time, each outcome stored as soon as it is known.

The images are cut into fixed batches of the run's order, and a batch with an outcome missing is worked on whole. So the
same images always meet in the same batch, and a run that was killed and resumed has the numbers of one that was not: to
the bit on a CPU, where sums are taken in a fixed order for a given number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dipdefense.checks import Precision, check_backend, operand_dtype
from dipdefense.config import Backend, DIPConfig
from dipdefense.evaluation.protocol import Chosen, Condition, Images, derive_seed
from dipdefense.evaluation.store import Key, Record, Store
from dipdefense.purifier import DIPPurifier
from dipdefense.randomization import RandomizationDefence


class Outcome(NamedTuple):
    """What came of a batch at one budget.

    Attributes:
        budget: iterations or passes.
        scores: (N, classes) logits or log probabilities.
        losses: (N,) mean squared errors of the reconstructions, or None.
        status: one an image.
        seconds: for the whole batch.
    """

    budget: int
    scores: Tensor
    losses: Tensor | None
    status: Sequence[str]
    seconds: float


@dataclass(frozen=True)
class Defence:
    """A named way of classifying.

    Attributes:
        name: as records have it.
        budgets: ascending.
        classify: from (classifier, images, budgets, one seed an image) to the outcome at each of these budgets.
        draws: whether the seeds matter.
        settings: whatever decides its outcomes beside budgets and seeds; a run's configuration takes it up.
    """

    name: str
    budgets: tuple[int, ...]
    classify: Callable[[nn.Module, Tensor, Sequence[int], Sequence[int]], Iterator[Outcome]]
    draws: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


def undefended() -> Defence:
    """The classifier alone."""

    def classify(classifier: nn.Module, images: Tensor, *_: Sequence[int]) -> Iterator[Outcome]:
        started = _clock(images)
        scores = classifier(images)
        yield Outcome(0, scores, None, ["ok"] * len(images), _clock(images) - started)

    return Defence("none", (0,), classify, draws=False)


def randomisation(passes: tuple[int, ...]) -> Defence:
    """Xie et al. 2017; the budget is the number of passes that are averaged, and more begin with the draws of fewer."""

    def classify(
        classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[Outcome]:
        for budget in budgets:
            started = _clock(images)
            scores = RandomizationDefence(classifier, passes=budget, seed=seeds)(images)
            yield Outcome(budget, scores, None, ["ok"] * len(images), _clock(images) - started)

    return Defence("randomisation", passes, classify)


def deep_image_prior(
    budgets: tuple[int, ...],
    *,
    config: DIPConfig,
    precision: Precision = "auto",
    backend: Backend = "torch",
    device: torch.device | str = "cpu",
) -> Defence:
    """The reconstruction of Kattamis et al. 2019: one run for all budgets, each of which is billed its iterations.

    Args:
        budgets: iterations, ascending.
        config: with its number of scales; see ``Subject.fitted``.
        precision: "auto", "fp32" or "bf16".
        backend: of the reconstruction.
        device: where it will run, which decides the precision.

    Raises:
        ValueError: the backend or the precision does not run on the device.
    """
    check_backend(backend, torch.device(device))
    operands = operand_dtype(precision, torch.device(device))
    settings: dict[str, Any] = {"dip": asdict(config), "precision": str(operands).removeprefix("torch.")}
    if backend != "torch":
        # Its noise or its roundings are others, so its outcomes are kept apart.
        settings["backend"] = backend

    def classify(
        classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[Outcome]:
        # The batch as it is, whatever memory is free today: cut otherwise, sums would be rounded otherwise.
        purifier = DIPPurifier(budgets[-1], config=config, precision=precision, backend=backend, batch_size=len(images))
        started = _clock(images)
        run = purifier.reconstruct(images, budgets=budgets, seed=seeds)
        fitting = _clock(images) - started
        for budget, drawn in zip(run.budgets, run.images, strict=True):
            started = _clock(images)
            scores = classifier(drawn)
            seconds = fitting * budget / budgets[-1] + _clock(images) - started
            # Of this budget, not of the whole run: a network that diverges at 900 was still fine at 500.
            finite = run.losses[:budget].isfinite().all(dim=0).tolist()
            status = ["ok" if fine else "diverged" for fine in finite]
            yield Outcome(budget, scores, run.losses[budget - 1], status, seconds)

    return Defence("dip", budgets, classify, settings=settings)


def run(
    store: Store,
    configuration: Mapping[str, Any],
    circumstances: Mapping[str, Any],
    *,
    data: Images,
    chosen: Chosen,
    classifier: nn.Module,
    conditions: Mapping[str, Condition | None],
    defences: Sequence[Defence],
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    batch: int = 1,
    progress: bool = False,
) -> str:
    """Bring the store to where it has every outcome; what it has already is not done again.

    Args:
        store: where outcomes are and go.
        configuration: everything that decides an outcome and is no argument below; two that differ never mix.
        circumstances: of this session: commit, versions, hardware.
        data: the data set.
        chosen: its images, in order.
        classifier: from images in [0, 1] to logits, on ``device``, in eval mode.
        conditions: by name; None leaves the images as they are.
        defences: with the budgets of each.
        seeds: draws of each defence; the first also serves the attacks.
        device: where to work.
        batch: images at once.
        progress: show a bar with the time left.

    Returns:
        The run's key in the store.
    """
    key = store.open_run(configuration)
    session = store.open_session(key, circumstances)
    todo = _todo(store.done(key), [data.ids[index] for index in chosen.indices], conditions, defences, seeds, batch)
    remaining = sum(len(piece.positions) for piece in todo)
    with tqdm(total=remaining, unit="image", desc="images × conditions", disable=not progress) as bar:
        for piece in todo:
            found = data.stack([chosen.indices[position] for position in piece.positions])
            images, labels = found.images.to(device), found.labels.to(device)
            if (attack := conditions[piece.condition]) is not None:
                attack_seeds = [derive_seed(seeds[0], piece.condition, name) for name in found.ids]
                images = attack(classifier, images, labels, batch_size=batch, seed=attack_seeds)
            for defence, seed, budgets in piece.work:
                bar.set_postfix_str(f"{piece.condition}, {defence.name}")
                defence_seeds = [derive_seed(seed, defence.name, name) for name in found.ids]
                known = {"condition": piece.condition, "defence": defence.name, "seed": seed, "session": session}
                with torch.no_grad():
                    for outcome in defence.classify(classifier, images, budgets, defence_seeds):
                        store.add(key, _records(outcome, found.ids, labels, piece.positions, known))
            bar.update(len(images))
    return key


class _Piece(NamedTuple):
    """A batch under one condition, and the defences, seeds and budgets at which an outcome of it is missing."""

    positions: range
    condition: str
    work: list[tuple[Defence, int, list[int]]]


def _todo(
    done: set[Key],
    names: Sequence[str],
    conditions: Iterable[str],
    defences: Sequence[Defence],
    seeds: Sequence[int],
    batch: int,
) -> list[_Piece]:
    """What is still to be done, batch by batch: at any time the finished images have been through everything."""
    todo = []
    for start in range(0, len(names), batch):
        positions = range(start, min(start + batch, len(names)))
        for condition in conditions:
            work = []
            for defence in defences:
                for seed in seeds if defence.draws else seeds[:1]:
                    budgets = [
                        budget
                        for budget in defence.budgets
                        if any(Key(condition, defence.name, budget, seed, names[p]) not in done for p in positions)
                    ]
                    if budgets:
                        work.append((defence, seed, budgets))
            if work:
                todo.append(_Piece(positions, condition, work))
    return todo


def _records(
    outcome: Outcome, names: Sequence[str], labels: Tensor, positions: Sequence[int], known: Mapping[str, Any]
) -> Iterator[Record]:
    """One record an image."""
    scores = outcome.scores.float().cpu()
    confidences = scores.softmax(dim=1)
    for row, (name, label, position) in enumerate(zip(names, labels.tolist(), positions, strict=True)):
        finite = bool(scores[row].isfinite().all())
        loss = None if outcome.losses is None else outcome.losses[row].item()
        yield Record(
            **known,
            budget=outcome.budget,
            position=position,
            image=name,
            label=label,
            prediction=int(scores[row].argmax()) if finite else -1,
            confidence=confidences[row, label].item() if finite else None,
            loss=loss if loss is not None and math.isfinite(loss) else None,
            status=outcome.status[row],
            seconds=outcome.seconds / len(names),
        )


def _clock(images: Tensor) -> float:
    """Seconds, once the device has done what it was told."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter()
