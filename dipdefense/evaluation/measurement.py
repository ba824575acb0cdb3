"""A measurement from images to stored outcomes, for any conditions and defences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

import dipdefense
from dipdefense.evaluation.protocol import Condition
from dipdefense.evaluation.provenance import circumstances, digest
from dipdefense.evaluation.runner import Defence, run
from dipdefense.evaluation.store import Key, Run, Store, read_export
from dipdefense.evaluation.subject import Setting, Subject

STORE = "outcomes.sqlite"
"""The file of stored outcomes in a report's folder."""


def measure(
    setting: Setting,
    subject: Subject,
    *,
    conditions: Mapping[str, Condition | None],
    defences: Sequence[Defence],
    configuration: Mapping[str, Any] | None = None,
    exports: str = "*.jsonl",
) -> Run:
    """Complete the store in ``setting.out`` with every outcome that is asked for, and return just those.

    A measurement that was interrupted or killed resumes from the store when it is called again. A folder with no store
    but with exported records, such as those of ``benchmarks/results``, is resumed from these.

    Args:
        setting: device, batch, seeds and folder.
        subject: from ``open_subject``.
        conditions: by name, such as ``{"clean": None, "fgsm-5": Attack("FGSM", 5)}``; the name decides the attack's
            seeds, and outcomes of one name never mix with those of another.
        defences: with the budgets of each.
        configuration: whatever else decides the outcomes, in types that JSON has; two runs that differ never mix.
        exports: a pattern of the names of the folder's exported records.

    Raises:
        ValueError: an export is none.
    """
    device = torch.device(setting.device)
    identity = _identity(setting, subject) | dict(configuration or {})
    for defence in defences:
        identity |= defence.settings
    restored = [read_export(path) for path in sorted(setting.out.glob(exports))]
    with Store(setting.out / STORE) as store:
        for exported in restored:
            store.restore(exported)
        key = run(
            store,
            identity,
            circumstances(device) | {"batch": setting.batch},
            data=subject.data,
            chosen=subject.chosen,
            classifier=subject.classifier,
            conditions=conditions,
            defences=defences,
            seeds=setting.seeds,
            device=device,
            batch=setting.batch,
            progress=setting.progress,
        )
        stored = store.load(key)
    # The store may have more from other calls: more images, conditions, budgets or seeds.
    asked = {
        Key(condition, defence.name, budget, seed, image)
        for condition in conditions
        for defence in defences
        for budget in defence.budgets
        for seed in setting.seeds
        for image in subject.ids
    }
    records = tuple(record for record in stored.records if record.key in asked)
    sessions = {session: stored.sessions[session] for session in sorted({record.session for record in records})}
    return Run(stored.configuration, records, sessions)


def _identity(setting: Setting, subject: Subject) -> dict[str, Any]:
    """What decides an outcome whatever the defence."""
    classifier, data = subject.classifier, subject.data
    return {
        "classifier": classifier.name,
        "weights": digest(value.cpu().numpy().tobytes() for value in classifier.state_dict().values()),
        "preprocess": str(classifier.preprocess),
        "input": list(subject.shape),
        "data": subject.source,
        "images": digest(f"{name} {label}\n".encode() for name, label in zip(data.ids, data.labels, strict=True)),
        "classes": setting.classes,
        "selection seed": setting.seeds[0],
        # A seed gives other random numbers on another kind of device.
        "device": torch.device(setting.device).type,
        "dipdefense": dipdefense.__version__,
    }
