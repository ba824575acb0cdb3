"""Conditions × defences × budgets over images, each outcome stored when known.

The images are cut into fixed batches of the run's order, and a batch with an outcome missing is run whole. So the same
images always meet in the same batch, and a run that was killed and resumed has the numbers of one that was not: to the
bit on a CPU, where sums are taken in a fixed order for a given number of threads. A file that has left the data set
since shifts the batches of what is still missing, which changes roundings alone; what is stored stays. Another batch or
more images make other batches too: an attack on a whole batch is then measured anew where it had not been finished.

An outcome depends on the pixels and the seed, and the seed on no attack: two conditions that give a batch the same
pixels, such as FGSM and one step of BI at ε = 1, are measured once and stored under both names.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    asked: Asked = everything,
    device: torch.device | str = "cpu",
    batch: int = 1,
    progress: bool = False,
    spread: Spread | None = None,
) -> Done:
    """Complete the store with every outcome; what it has already is not done again.

    Args:
        store: where outcomes are and go.
        configuration: everything that decides an outcome and is not an argument below; runs that differ in it never
            mix.
        circumstances: of this session: commit, versions, hardware.
        data: the data set.
        chosen: its images, in order.
        classifier: from images in [0, 1] to logits, on ``device``, in eval mode.
        conditions: by name; None leaves the images as they are.
        defences: with the budgets of each.
        seeds: each repeats the random defences; the first also serves the attacks.
        asked: which combinations; the others are left out.
        device: where the classifier is.
        batch: images at once.
        progress: show a bar with the time left.
        spread: calls a function with every item, in other processes, and yields (index, result) as each is known, such
            as ``dipdefense.distributed.spread``; None for this process. A batch's outcomes are then stored together.

    Returns:
        The run's key in the store, and the ids of the chosen images that could no longer be read as they were chosen;
        of these, outcomes are missing.
    """
    key = store.open_run(configuration)
    session = store.open_session(key, {**circumstances, "batch": batch, "chosen": len(chosen.indices)})
    ids = [data.ids[index] for index in chosen.indices]
    places = {name: place for place, name in enumerate(ids)}
    contents = dict(zip(ids, chosen.contents, strict=True))
    labels_of = (int(data.labels[index]) for index in chosen.indices)
    if changed := store.adopt(key, {name: (label, contents[name]) for name, label in zip(ids, labels_of, strict=True)}):
        warnings.warn(
            f"{len(changed)} images are not those that outcomes are stored of ({_some(changed)}); they are measured "
            "anew, and the old outcomes are not used",
            stacklevel=2,
        )
    lost: dict[str, None] = {}
    done = store.done(key)
    todo = _todo(done, contents, conditions, defences, seeds, asked, batch)
    if mixed := _mixed(store, key, done, todo, contents, conditions, defences):
        store.forget(key, mixed)
        todo = _todo(store.done(key), contents, conditions, defences, seeds, asked, batch)
    remaining = sum(len(piece.positions) for piece in todo)
    measuring = _Measuring(
        data,
        chosen.indices,
        contents,
        places,
        classifier,
        conditions,
        defences,
        seeds[0],
        device,
        batch,
        session,
        _Known(),
    )
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


def unfinished(
    done: set[Key],
    images: Sequence[tuple[str, str]],
    conditions: Iterable[str],
    defences: Sequence[Defence],
    seeds: Sequence[int],
    asked: Asked = everything,
) -> set[tuple[str, str, int]]:
    """The conditions, defences and budgets that lack an outcome that is asked for.

    Args:
        done: what is stored.
        images: ids and contents.
        conditions: their names.
        defences: with the budgets of each.
        seeds: as of ``run``.
        asked: which combinations; the others are not missing.
    """
    todo = _todo(done, dict(images), conditions, defences, seeds, asked, 1)
    work = ((piece.condition, *each) for piece in todo for each in piece.work)
    return {(condition, defences[place].name, budget) for condition, place, _, budgets in work for budget in budgets}


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

    data: Images
    indices: Sequence[int]
    contents: Mapping[str, str]
    places: Mapping[str, int]
    classifier: nn.Module
    conditions: Mapping[str, Condition | None]
    defences: Sequence[Defence]
    attack_seed: int
    device: torch.device | str
    batch: int
    session: int
    known: _Known

    def parts(self, piece: _Piece) -> Iterator[Part]:
        """The piece's outcomes as they become known."""
        found, gone = _reread(self.data, [self.indices[position] for position in piece.positions], self.contents)
        yield gone, ()
        if found is None:
            return
        images, labels = found.images.to(self.device), found.labels.to(self.device)
        if (attack := self.conditions[piece.condition]) is not None:
            attack_seeds = [derive_seed(self.attack_seed, piece.condition, name) for name in found.ids]
            images = attack(self.classifier, images, labels, batch_size=self.batch, seed=attack_seeds)
        for defence, seed, outcome in _outcomes(
            piece, self.defences, found.ids, images, self.classifier, self.known.of(piece.positions)
        ):
            known = {"condition": piece.condition, "defence": defence.name, "seed": seed, "session": self.session}
            yield {}, list(_records(outcome, found, self.places, self.contents, known))

    def whole(self, piece: _Piece) -> list[Part]:
        """The piece's outcomes, all at once."""
        return list(self.parts(piece))


def _each(measuring: _Measuring, todo: Sequence[_Piece]) -> Iterator[tuple[int, Iterable[Part]]]:
    for number, piece in enumerate(todo):
        yield number, measuring.parts(piece)


# As a decorator it is off between two outcomes: the caller's gradients stay on, however the run ends.
@torch.no_grad()
def _outcomes(
    piece: _Piece,
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


class _Piece(NamedTuple):
    """A batch under one condition, with the outcomes of it that are missing.

    Each item of ``work`` is a defence's place, a seed, and the budgets at which an outcome is missing.
    """

    positions: range
    condition: str
    work: list[tuple[int, int, list[int]]]


def _todo(
    done: set[Key],
    contents: Mapping[str, str],
    conditions: Iterable[str],
    defences: Sequence[Defence],
    seeds: Sequence[int],
    asked: Asked,
    batch: int,
) -> list[_Piece]:
    """The missing outcomes, batch by batch.

    So at any time the finished images have been through everything.
    """
    todo = []
    images = list(contents.items())
    for start in range(0, len(images), batch):
        positions = range(start, min(start + batch, len(images)))
        for condition in conditions:
            work = []
            for place, defence in enumerate(defences):
                for seed in seeds if defence.random else seeds[:1]:
                    budgets = [
                        budget
                        for budget in defence.budgets
                        if asked(condition, defence.name, budget, seed)
                        and any(Key(condition, defence.name, budget, seed, *images[p]) not in done for p in positions)
                    ]
                    if budgets:
                        work.append((place, seed, budgets))
            if work:
                todo.append(_Piece(positions, condition, work))
    return todo


def _mixed(
    store: Store,
    key: str,
    done: set[Key],
    todo: Sequence[_Piece],
    contents: Mapping[str, str],
    conditions: Mapping[str, Condition | None],
    defences: Sequence[Defence],
) -> list[Attacked]:
    """Images whose stored and missing outcomes would be of two adversarial examples.

    An attack on a batch as a whole gives another example in another batch, which a larger run makes of its last images.
    """
    whole = [piece for piece in todo if getattr(conditions[piece.condition], "whole_batch", False)]
    if not whole:
        return []
    stored, images = store.batches(key), list(contents.items())
    found = []
    for piece in whole:
        for image in (images[position] for position in piece.positions):
            attacked = Attacked(piece.condition, *image)
            missing = any(
                Key(piece.condition, defences[place].name, budget, seed, *image) not in done
                for place, seed, budgets in piece.work
                for budget in budgets
            )
            if missing and stored.get(attacked, set()) - {piece.positions}:
                found.append(attacked)
    return found


def _records(
    outcome: Outcome,
    found: LabelledImages,
    places: Mapping[str, int],
    contents: Mapping[str, str],
    known: Mapping[str, Any],
) -> Iterator[Record]:
    """One record an image."""
    scores = outcome.scores.float().cpu()
    confidences = scores.softmax(dim=1)
    for row, (name, label) in enumerate(zip(found.ids, found.labels.tolist(), strict=True)):
        finite = bool(scores[row].isfinite().all())
        loss = None if outcome.losses is None else outcome.losses[row].item()
        yield Record(
            **known,
            budget=outcome.budget,
            position=places[name],
            image=name,
            content=contents[name],
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
