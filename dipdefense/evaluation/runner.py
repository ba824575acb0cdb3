"""Conditions × defences × budgets over images, each outcome stored when known.

The images are cut into fixed batches of the run's order, and a batch with an outcome missing is run whole. So the same
images always meet in the same batch, and a run that was killed and resumed has the numbers of one that was not: to the
bit on a CPU, where sums are taken in a fixed order for a given number of threads. A file that has left the data set
since shifts the batches of what is still missing, which changes roundings alone, but for an attack on a whole batch;
what is stored stays. Another batch or more images make other batches too: an attack on a whole batch is then measured
anew where it had not been finished.

An outcome depends on the pixels and the seed, and the seed on no attack: two conditions that give a batch the same
pixels, such as FGSM and one step of BI at ε = 1, are measured once and stored under both names.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dipdefense.datasets import LabelledImages
from dipdefense.evaluation.defences import Defence, Outcome
from dipdefense.evaluation.protocol import Chosen, Condition, Images, content_digest, read
from dipdefense.evaluation.provenance import digest
from dipdefense.evaluation.records import Key, Record
from dipdefense.evaluation.store import Attacked, Store
from dipdefense.seeds import derive_seed

Asked = Callable[[str, str, int, int], bool]
"""Whether (condition, defence, budget, seed) is to be measured."""


def everything(condition: str, defence: str, budget: int, seed: int) -> bool:  # noqa: ARG001
    """Every condition behind every defence, at every budget, with every seed."""
    return True


Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[int, Any]]]
"""A way to call a function with many items elsewhere."""


class Done(NamedTuple):
    """A run that has gone through all its images.

    Attributes:
        key: of the run in the store.
        lost: ids of images that could no longer be read as they were chosen, and lack outcomes.
    """

    key: str
    lost: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is measured: images under conditions, behind defences.

    Attributes:
        data: the data set.
        chosen: its images, in order.
        classifier: from images in [0, 1] to logits, on ``device``, in eval mode.
        conditions: by name; None leaves the images as they are.
        defences: with the budgets of each.
        seeds: each repeats the random defences; the first also serves the attacks.
        asked: which combinations; the others are left out.
        device: where the classifier is.
        batch: images at once.
    """

    data: Images
    chosen: Chosen
    classifier: nn.Module
    conditions: Mapping[str, Condition | None]
    defences: Sequence[Defence]
    seeds: Sequence[int]
    asked: Asked = everything
    device: torch.device | str = "cpu"
    batch: int = 1

    @cached_property
    def images(self) -> list[tuple[str, str]]:
        """Id and content of each image."""
        ids = (self.data.ids[index] for index in self.chosen.indices)
        return list(zip(ids, self.chosen.contents, strict=True))

    @cached_property
    def places(self) -> dict[str, int]:
        """The images' places in the run's order, by id."""
        return {name: place for place, (name, _) in enumerate(self.images)}

    def seeds_of(self, defence: Defence) -> Sequence[int]:
        """The seeds with which a defence is measured: one if it is not random."""
        return self.seeds if defence.random else self.seeds[:1]

    def todo(self, done: set[Key]) -> list[Piece]:
        """The outcomes that are not done, batch by batch.

        So at any time the finished images have been through everything.
        """
        starts = range(0, len(self.images), self.batch)
        batches = (range(start, min(start + self.batch, len(self.images))) for start in starts)
        pieces = (
            Piece(positions, condition, self._missing(done, positions, condition))
            for positions in batches
            for condition in self.conditions
        )
        return [piece for piece in pieces if piece.work]

    def _missing(self, done: set[Key], positions: range, condition: str) -> list[tuple[int, int, list[int]]]:
        images = [self.images[position] for position in positions]
        work = []
        for place, defence in enumerate(self.defences):
            for seed in self.seeds_of(defence):
                budgets = [
                    budget
                    for budget in defence.budgets
                    if self.asked(condition, defence.name, budget, seed)
                    and any(Key(condition, defence.name, budget, seed, *image) not in done for image in images)
                ]
                if budgets:
                    work.append((place, seed, budgets))
        return work


class Piece(NamedTuple):
    """A batch under one condition, with the outcomes of it that are missing.

    Each item of ``work`` is a defence's place, a seed, and the budgets at which an outcome is missing.
    """

    positions: range
    condition: str
    work: list[tuple[int, int, list[int]]]


def run(
    store: Store,
    configuration: Mapping[str, Any],
    circumstances: Mapping[str, Any],
    experiment: Experiment,
    *,
    progress: bool = False,
    spread: Spread | None = None,
) -> Done:
    """Complete the store with every outcome; what it has already is not done again.

    Args:
        store: where outcomes are and go.
        configuration: everything that decides an outcome and is not in the experiment; runs that differ in it never
            mix.
        circumstances: of this session: commit, versions, hardware.
        experiment: what is measured.
        progress: show a bar with the time left.
        spread: calls a function with every item, in other processes, and yields (index, result) as each is known, such
            as ``dipdefense.distributed.spread``; None for this process. A batch's outcomes are then stored together.

    Returns:
        The run's key in the store, and the ids of the chosen images that could no longer be read as they were chosen;
        of these, outcomes are missing.
    """
    key = store.open_run(configuration)
    chosen = experiment.chosen
    told = {**circumstances, "batch": experiment.batch, "chosen": len(chosen.indices)}
    session = store.open_session(key, told)
    labels = (int(experiment.data.labels[index]) for index in chosen.indices)
    now = {name: (label, content) for (name, content), label in zip(experiment.images, labels, strict=True)}
    if changed := store.adopt(key, now):
        warnings.warn(
            f"{len(changed)} images are not those that outcomes are stored of ({_some(changed)}); they are measured "
            "anew, and the old outcomes are not used",
            stacklevel=2,
        )
    lost: dict[str, None] = {}
    done = store.done(key)
    todo = experiment.todo(done)
    if mixed := _mixed(store, key, done, todo, experiment):
        store.forget(key, mixed)
        todo = experiment.todo(store.done(key))
    remaining = sum(len(piece.positions) for piece in todo)
    measuring = _Measuring(experiment, session, _Known())
    with tqdm(total=remaining, unit="image", desc="images × conditions", disable=not progress) as bar:
        for number, parts in _each(measuring, todo) if spread is None else spread(measuring.whole, todo):
            for gone, records in parts:
                for reason in gone.values():
                    warnings.warn(f"{reason}; it is left out", stacklevel=2)
                lost |= dict.fromkeys(gone)
                if records:
                    bar.set_postfix_str(f"{records[0].condition}, {records[0].defence}")
                    store.add(key, records)
            bar.update(len(todo[number].positions))
    return Done(key, tuple(lost))


Part = tuple[Mapping[str, str], Sequence[Record]]
"""Why images can no longer be read, by id, and outcomes that became known together."""


_Decided = tuple[str, int, tuple[int, ...], tuple[int, ...]]
"""What decides a batch's outcomes: the digest of its pixels, the defence's place, its seeds and its budgets."""


class _Known:
    """The outcomes that one batch has so far, under any condition."""

    def __init__(self) -> None:
        self._positions = range(0)
        self._outcomes: dict[_Decided, list[Outcome]] = {}

    def of(self, positions: range) -> dict[_Decided, list[Outcome]]:
        """Those of the batch at these positions; another batch's are let go."""
        if positions != self._positions:
            self._positions, self._outcomes = positions, {}
        return self._outcomes


class _Measuring(NamedTuple):
    """How a piece of a run is measured, in this process or another."""

    experiment: Experiment
    session: int
    known: _Known

    def parts(self, piece: Piece) -> Iterator[Part]:
        """The piece's outcomes as they become known."""
        made = self.experiment
        indices = [made.chosen.indices[position] for position in piece.positions]
        found, gone = _reread(made.data, indices, dict(made.images))
        yield gone, ()
        if found is None:
            return
        images, labels = found.images.to(made.device), found.labels.to(made.device)
        if (attack := made.conditions[piece.condition]) is not None:
            attack_seeds = [derive_seed(made.seeds[0], piece.condition, name) for name in found.ids]
            images = attack(made.classifier, images, labels, batch_size=made.batch, seed=attack_seeds)
        known = self.known.of(piece.positions)
        for defence, seed, outcome in _outcomes(piece, made.defences, found.ids, images, made.classifier, known):
            told = {"condition": piece.condition, "defence": defence.name, "seed": seed, "session": self.session}
            yield {}, list(_records(outcome, found, made, told))

    def whole(self, piece: Piece) -> list[Part]:
        """The piece's outcomes, all at once."""
        return list(self.parts(piece))


def _each(measuring: _Measuring, todo: Sequence[Piece]) -> Iterator[tuple[int, Iterable[Part]]]:
    for number, piece in enumerate(todo):
        yield number, measuring.parts(piece)


# As a decorator it is off between two outcomes: the caller's gradients stay on, however the run ends.
@torch.no_grad()
def _outcomes(
    piece: Piece,
    defences: Sequence[Defence],
    ids: Sequence[str],
    images: Tensor,
    classifier: nn.Module,
    known: dict[_Decided, list[Outcome]],
) -> Iterator[tuple[Defence, int, Outcome]]:
    """A batch's outcomes by defence, seed and budget; known ones are reused."""
    pixels = digest([images.cpu().numpy().tobytes()])
    for place, seed, budgets in piece.work:
        defence = defences[place]
        own_seeds = [derive_seed(seed, defence.family or defence.name, name) for name in ids]
        decided = pixels, place, tuple(own_seeds), tuple(budgets)
        found = []
        for outcome in known.get(decided) or defence.classify(classifier, images, budgets, own_seeds):
            found.append(outcome)
            yield defence, seed, outcome
        known[decided] = found


def _reread(
    data: Images, indices: Sequence[int], contents: Mapping[str, str]
) -> tuple[LabelledImages | None, dict[str, str]]:
    """The images still as they were chosen, and what is wrong with the others, by id."""
    found, readable, errors = read(data, indices)
    gone = {name: str(error) for name, error in errors.items()}
    if found is not None:
        for name, image, label in zip(found.ids, found.images, found.labels.tolist(), strict=True):
            if content_digest(image, label) != contents[name]:
                gone[name] = f"{name} has changed since it was chosen"
        if any(name in gone for name in found.ids):
            kept = [index for index in readable if data.ids[index] not in gone]
            found = data.stack(kept) if kept else None
    return found, gone


def _mixed(store: Store, key: str, done: set[Key], todo: Sequence[Piece], experiment: Experiment) -> list[Attacked]:
    """Images whose stored and missing outcomes would be of two adversarial examples.

    An attack on a batch as a whole gives another example in another batch, which a larger run makes of its last images.
    """
    whole = [piece for piece in todo if getattr(experiment.conditions[piece.condition], "whole_batch", False)]
    if not whole:
        return []
    stored = store.batches(key)
    found = []
    for piece in whole:
        for image in (experiment.images[position] for position in piece.positions):
            attacked = Attacked(piece.condition, *image)
            missing = any(
                Key(piece.condition, experiment.defences[place].name, budget, seed, *image) not in done
                for place, seed, budgets in piece.work
                for budget in budgets
            )
            batches = stored.get(attacked, set())
            # Of two batches where an export has restored what had been dropped.
            if (missing and batches - {piece.positions}) or len(batches - {None}) > 1:
                found.append(attacked)
    return found


def _records(
    outcome: Outcome, found: LabelledImages, experiment: Experiment, told: Mapping[str, Any]
) -> Iterator[Record]:
    """One record an image."""
    scores = outcome.scores.float().cpu()
    confidences = scores.softmax(dim=1)
    for row, (name, label) in enumerate(zip(found.ids, found.labels.tolist(), strict=True)):
        place = experiment.places[name]
        finite = bool(scores[row].isfinite().all())
        loss = None if outcome.losses is None else outcome.losses[row].item()
        yield Record(
            **told,
            budget=outcome.budget,
            position=place,
            image=name,
            content=experiment.chosen.contents[place],
            label=label,
            prediction=int(scores[row].argmax()) if finite else -1,
            confidence=confidences[row, label].item() if finite else None,
            loss=loss if loss is not None and math.isfinite(loss) else None,
            status=outcome.status[row],
            seconds=outcome.seconds / len(found.ids),
            iterations=None if outcome.iterations is None else outcome.iterations[row],
        )


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])
