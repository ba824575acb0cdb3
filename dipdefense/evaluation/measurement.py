"""A measurement from images to stored outcomes, for any conditions and defences."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import dipdefense
from dipdefense.config import DIPConfig
from dipdefense.evaluation.defences import Defence, deep_image_prior
from dipdefense.evaluation.exports import ExportError, read_export
from dipdefense.evaluation.protocol import Condition
from dipdefense.evaluation.provenance import circumstances, weights_digest
from dipdefense.evaluation.records import Key, Run
from dipdefense.evaluation.runner import Asked, Done, Experiment, Spread, everything, run
from dipdefense.evaluation.store import Store
from dipdefense.evaluation.subject import ReconstructionSetting, Setting, Subject
from dipdefense.stopping import Rule

STORE = "outcomes.sqlite"
"""The file of stored outcomes in a report's folder."""


def measure(
    setting: Setting,
    subject: Subject,
    *,
    conditions: Mapping[str, Condition | None],
    defences: Sequence[Defence],
    configuration: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    asked: Asked = everything,
    exports: str = "*.jsonl",
    spread: Spread | None = None,
    only_stored: bool = False,
) -> Run:
    """Complete the store with every outcome that is asked for, and return just those.

    The store is in ``setting.out``. A measurement that was interrupted or killed resumes from it when it is called
    again. A folder with no store but with exported records, such as those of ``benchmarks/results``, is resumed from
    these.

    Args:
        setting: device, batch, seeds and folder.
        subject: from ``open_subject``.
        conditions: by name, such as ``{"clean": None, "fgsm-5": Attack("FGSM", 5)}``; the name decides the attack's
            seeds, and outcomes of one name never mix with those of another.
        defences: with the budgets of each.
        configuration: everything else that decides the outcomes, in types that JSON has; runs that differ in it never
            mix.
        seeds: of the defences, the first of the attacks too; by default the setting's.
        asked: which combinations of condition, defence, budget and seed; the others are left out.
        exports: a pattern of the names of the folder's exported records.
        spread: see ``runner.run``; None for this process. The store is written here all the same.
        only_stored: measure nothing, and return what is stored of each condition, defence and budget whose outcomes are
            complete.

    Returns:
        The outcomes, positions as in ``subject``. Images that could not be read are left out, and named.

    Raises:
        StoreError: the store cannot be read or written.
        ExportError: an export was changed since it was written, and no store has its outcomes.
        ValueError: two defences share a name or differ in a setting, before any work; or none of the images can be
            read any more.
    """
    device = torch.device(setting.device)
    identity = _identity(setting, subject)
    for settings in (configuration or {}, *(defence.settings for defence in defences)):
        if clash := sorted(name for name, value in settings.items() if identity.setdefault(name, value) != value):
            raise ValueError(
                f"one run has one {clash[0]}, got {identity[clash[0]]!r} and {settings[clash[0]]!r}; measure them one "
                "after the other, into the same folder if you like"
            )
    if len({defence.name for defence in defences}) < len(defences):
        raise ValueError(f"the defences of a run need different names, got {[defence.name for defence in defences]}")
    experiment = Experiment(
        data=subject.data, chosen=subject.chosen, classifier=subject.classifier, conditions=conditions,
        defences=defences, seeds=setting.seeds if seeds is None else seeds, asked=asked, device=device,
        batch=setting.batch,
    )  # fmt: skip
    with _resumed(setting.out, exports) as store:
        return complete(
            store, identity, circumstances(device), experiment, progress=setting.progress, spread=spread,
            only_stored=only_stored,
        )  # fmt: skip


def reconstruction_of(
    setting: ReconstructionSetting, subject: Subject, config: DIPConfig, *, stopping: Rule | None = None
) -> Defence:
    """The reconstruction of a setting, by networks that fit the subject's images."""
    return deep_image_prior(
        setting.budgets, config=config, precision=setting.precision, backend=setting.backend, shape=subject.shape,
        batch=setting.batch, device=setting.device, stopping=stopping,
    )  # fmt: skip


def complete(
    store: Store,
    configuration: Mapping[str, Any],
    told: Mapping[str, Any],
    experiment: Experiment,
    *,
    progress: bool = False,
    spread: Spread | None = None,
    only_stored: bool = False,
) -> Run:
    """Complete a store with every outcome that is asked for, and return just those.

    Arguments as of ``runner.run``; with ``only_stored`` as of ``measure``.

    Raises:
        StoreError: the store cannot be read or written.
        ValueError: none of the images can be read any more.
    """
    done = (
        Done(store.open_run(configuration), ())
        if only_stored
        else run(store, configuration, told, experiment, progress=progress, spread=spread)
    )
    stored = store.load(done.key)
    # The store may have more from other calls: images, conditions, budgets, seeds, or an image as it was before.
    images = [image for image in experiment.images if image[0] not in done.lost]
    if not images:
        raise ValueError("none of the chosen images can be read any more; see the warnings, and call again")
    missing = experiment.todo({record.key for record in stored.records}) if only_stored else []
    left_out = {
        (piece.condition, experiment.defences[place].name, budget)
        for piece in missing
        for place, _, budgets in piece.work
        for budget in budgets
    }
    wanted = {
        Key(condition, defence.name, budget, seed, *image)
        for condition in experiment.conditions
        for defence in experiment.defences
        for budget in defence.budgets
        if (condition, defence.name, budget) not in left_out
        for seed in experiment.seeds_of(defence)
        if experiment.asked(condition, defence.name, budget, seed)
        for image in images
    }
    places = {image: place for place, image in enumerate(images)}
    records = sorted(
        (
            replace(record, position=places[record.image, record.content])
            for record in stored.records
            if record.key in wanted
        ),
        key=lambda record: (record.position, record.key),
    )
    sessions = {session: stored.sessions[session] for session in sorted({record.session for record in records})}
    return Run(stored.configuration, tuple(records), sessions, (*experiment.chosen.skipped, *done.lost))


def joined(runs: Sequence[Run]) -> Run:
    """Several measurements of one configuration, as one run.

    All have the same images in the same order, the first of them, or all but some that could no longer be read.
    """
    every = [record for each in runs for record in each.records]
    places: dict[tuple[str, str], int] = {}
    for record in every:
        places.setdefault((record.image, record.content), len(places))
    placed = (replace(record, position=places[record.image, record.content]) for record in every)
    records = sorted(placed, key=lambda record: (record.position, record.key))
    sessions = {number: told for each in runs for number, told in each.sessions.items()}
    skipped = tuple(dict.fromkeys(name for each in runs for name in each.skipped))
    return Run(runs[0].configuration, tuple(records), dict(sorted(sessions.items())), skipped)


@contextlib.contextmanager
def _resumed(folder: Path, exports: str) -> Iterator[Store]:
    """The folder's store, with the outcomes of its exports taken up."""
    path = folder / STORE
    restored, broken = [], []
    for file in sorted(folder.glob(exports)):
        try:
            restored.append(read_export(file))
        except ExportError as error:
            broken.append(error)
    # Before a store is made, or the next call would take the new one for whole.
    if broken and not path.exists():
        raise broken[0]
    with Store(path) as store:
        for reason in broken:
            if store.is_empty():
                raise reason
            warnings.warn(f"{reason}. The outcomes come from {path}", stacklevel=4)
        for exported in restored:
            store.restore(exported)
        yield store


def _identity(setting: Setting, subject: Subject) -> dict[str, Any]:
    """The part of a configuration that decides outcomes behind any defence."""
    classifier = subject.classifier
    return {
        "classifier": classifier.name,
        "weights": weights_digest(classifier),
        "preprocess": str(classifier.preprocess),
        "input": list(subject.shape),
        "data": subject.source,
        "classes": setting.classes,
        "selection seed": setting.seeds[0],
        # A seed gives other random numbers on another kind of device.
        "device": torch.device(setting.device).type,
        "dipdefense": dipdefense.__version__,
    }
