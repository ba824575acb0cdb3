"""Conditions × defences × budgets over images, a batch at a time, each outcome stored as soon as it is known.

The images are cut into fixed batches of the run's order, and a batch with an outcome missing is run whole. So the same
images always meet in the same batch, and a run that was killed and resumed has the numbers of one that was not: to the
bit on a CPU, where sums are taken in a fixed order for a given number of threads. A file that has left the data set
since shifts the batches of what is still missing, which changes roundings alone; what is stored stays.
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
from dipdefense.evaluation.records import Key, Record
from dipdefense.evaluation.store import Store
from dipdefense.seeds import derive_seed

Asked = Callable[[str, str, int, int], bool]
"""Whether (condition, defence, budget, seed) is to be measured."""


def everything(condition: str, defence: str, budget: int, seed: int) -> bool:  # noqa: ARG001
    """Every condition behind every defence, at every budget, with every seed."""
    return True


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
) -> Done:
    """Complete the store with every outcome; what it has already is not done again.

    Args:
        store: where outcomes are and go.
        configuration: everything that decides an outcome and is no argument below; two that differ never mix.
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

    Returns:
        The run's key in the store, and the ids of the chosen images that could no longer be read as they were chosen;
        of these, outcomes are missing.
    """
    key = store.open_run(configuration)
    session = store.open_session(key, circumstances)
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
    todo = _todo(store.done(key), contents, conditions, defences, seeds, asked, batch)
    remaining = sum(len(piece.positions) for piece in todo)
    with tqdm(total=remaining, unit="image", desc="images × conditions", disable=not progress) as bar:
        for piece in todo:
            found, gone = _reread(data, [chosen.indices[position] for position in piece.positions], contents)
            lost |= dict.fromkeys(gone)
            if found is not None:
                images, labels = found.images.to(device), found.labels.to(device)
                if (attack := conditions[piece.condition]) is not None:
                    attack_seeds = [derive_seed(seeds[0], piece.condition, name) for name in found.ids]
                    images = attack(classifier, images, labels, batch_size=batch, seed=attack_seeds)
                with torch.no_grad():
                    for defence, seed, outcome in _outcomes(piece, found.ids, images, classifier):
                        bar.set_postfix_str(f"{piece.condition}, {defence.name}")
                        known = {"condition": piece.condition, "defence": defence.name, "seed": seed}
                        store.add(key, _records(outcome, found, places, contents, known | {"session": session}))
            bar.update(len(piece.positions))
    return Done(key, tuple(lost))


def _outcomes(
    piece: _Piece, ids: Sequence[str], images: Tensor, classifier: nn.Module
) -> Iterator[tuple[Defence, int, Outcome]]:
    """A batch's outcomes behind each defence, with each seed, at each budget."""
    for defence, seed, budgets in piece.work:
        own_seeds = [derive_seed(seed, defence.family or defence.name, name) for name in ids]
        for outcome in defence.classify(classifier, images, budgets, own_seeds):
            yield defence, seed, outcome


def _reread(
    data: Images, indices: Sequence[int], contents: Mapping[str, str]
) -> tuple[LabelledImages | None, list[str]]:
    """The images that are still as they were chosen, and the ids of the others."""
    found, readable, errors = read(data, indices)
    gone = {name: str(error) for name, error in errors.items()}
    if found is not None:
        for name, image, label in zip(found.ids, found.images, found.labels.tolist(), strict=True):
            if content_digest(image, label) != contents[name]:
                gone[name] = f"{name} has changed since it was chosen"
        if any(name in gone for name in found.ids):
            kept = [index for index in readable if data.ids[index] not in gone]
            found = data.stack(kept) if kept else None
    for reason in gone.values():
        warnings.warn(f"{reason}; it is left out", stacklevel=3)
    return found, list(gone)


class _Piece(NamedTuple):
    """A batch under one condition, and the defences, seeds and budgets at which an outcome of it is missing."""

    positions: range
    condition: str
    work: list[tuple[Defence, int, list[int]]]


def _todo(
    done: set[Key],
    contents: Mapping[str, str],
    conditions: Iterable[str],
    defences: Sequence[Defence],
    seeds: Sequence[int],
    asked: Asked,
    batch: int,
) -> list[_Piece]:
    """The outcomes that are missing, batch by batch: at any time the finished images have been through everything."""
    todo = []
    images = list(contents.items())
    for start in range(0, len(images), batch):
        positions = range(start, min(start + batch, len(images)))
        for condition in conditions:
            work = []
            for defence in defences:
                for seed in seeds if defence.random else seeds[:1]:
                    budgets = [
                        budget
                        for budget in defence.budgets
                        if asked(condition, defence.name, budget, seed)
                        and any(Key(condition, defence.name, budget, seed, *images[p]) not in done for p in positions)
                    ]
                    if budgets:
                        work.append((defence, seed, budgets))
            if work:
                todo.append(_Piece(positions, condition, work))
    return todo


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
