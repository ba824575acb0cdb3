"""``benchmarks/adaptive.py`` from the command line to its written report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dipdefense.attacks.adaptive.autoattack import check_autoattack
from dipdefense.evaluation import command_line
from dipdefense.evaluation.adaptive.benchmark import (
    EXPORTS,
    AdaptiveSetting,
    Opponents,
    measure_adaptive,
    measured,
    opponents,
    parse_arguments,
)
from dipdefense.evaluation.adaptive.conditions import check_conditions
from dipdefense.evaluation.adaptive.names import target_name
from dipdefense.evaluation.adaptive.plan import costs, plan, seconds_of
from dipdefense.evaluation.adaptive.probes import Probes, probe
from dipdefense.evaluation.adaptive.report import AdaptiveReport
from dipdefense.evaluation.exports import read_export
from dipdefense.evaluation.measurement import STORE
from dipdefense.evaluation.records import Run
from dipdefense.evaluation.report import png, text, write_files
from dipdefense.evaluation.subject import Subject, open_subject

_NAME = "adaptive"

# Images that a defence is probed with.
_PROBED = 2


def reproduce(description: str | None) -> None:
    """Read the command line, print the plan, measure, and write and print the report.

    With --report it prints no plan and measures nothing.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    setting = parse_arguments(description)
    store = setting.out / STORE
    with command_line.script(store):
        with command_line.usage():
            if setting.report and not (store.exists() or any(setting.out.glob(EXPORTS))):
                raise ValueError(f"{setting.out} has no evaluation to report on")
            check_autoattack(setting.attackers)
            subject = open_subject(setting)
            against = opponents(setting, subject)
            found = measured(setting, against)
            stacked = subject.data.stack(subject.chosen.indices[: setting.batch])
            few, labels = stacked.images.to(setting.device), stacked.labels.to(setting.device)
            check_conditions(found, subject.classifier, few[:1], labels[:1])
        if not setting.report:
            seconds = {target.name: seconds_of(target, subject.classifier, few) for target in against.targets}
            again = measured(setting, against, repeat=1) if setting.level.repeats else {}
            rows, further = (costs(setting.level, against.targets, each) for each in (found, again))
            count = len(subject.chosen.indices)
            print(text([plan(setting.level, rows, seconds, images=count, again=further)]), flush=True)
        if setting.dry_run:
            return
        run = measure_adaptive(setting, subject, against)
        with command_line.usage():
            if not run.records:
                raise ValueError(f"{store} has nothing of this evaluation in full yet")
        probes = _stored_probes(run, setting.out) if setting.report else probed(setting, subject, against)
        report = AdaptiveReport(run, probes)
        command_line.finish(write_report(report, setting.out), store, [run])


def _stored_probes(run: Run, folder: Path) -> Mapping[str, Probes]:
    """The probes in the folder's report if it is of this configuration, else none."""
    try:
        before = read_report(folder)
    except (OSError, ValueError, TypeError):  # a file is missing or broken, or of another version
        return {}
    names = {target_name(record.defence, record.budget) for record in run.records} - {target_name("none", 0)}
    same = before.run.configuration == run.configuration and names <= before.probes.keys()
    return before.probes if same else {}


def probed(setting: AdaptiveSetting, subject: Subject, against: Opponents) -> dict[str, Probes]:
    """The properties of each defence but none, found out on the first images."""
    few = subject.data.stack(subject.chosen.indices[:_PROBED])
    images, labels = few.images.to(setting.device), few.labels.to(setting.device)
    attacked = [target for target in against.targets if target.column != ("none", 0)]
    return {target.name: probe(target.purifier, subject.classifier, images, labels) for target in attacked}


def write_report(report: AdaptiveReport, folder: Path) -> list[Path]:
    """Write adaptive.txt, .md, .png, .jsonl and adaptive-probes.json.

    ``read_report`` needs the last two alone.

    Raises:
        ImportError: Matplotlib is missing.
    """
    probes = {name: each.to_json() for name, each in report.probes.items()}
    files: dict[str, str | bytes] = {
        f"{_NAME}.txt": str(report),
        f"{_NAME}.md": report.markdown(),
        f"{_NAME}.png": png(report.plot()),
        f"{_NAME}-probes.json": json.dumps(probes, indent=2) + "\n",
    }
    return write_files(folder, files, {f"{_NAME}.jsonl": report.run})


def read_report(folder: Path) -> AdaptiveReport:
    """The report whose files ``write_report`` wrote.

    Raises:
        ExportError: the records are not as they were written.
        ValueError, TypeError: the probes are not, or another version's.
        OSError: a file is missing.
    """
    probes = json.loads((folder / f"{_NAME}-probes.json").read_text())
    told = {name: Probes.from_json(each) for name, each in probes.items()}
    return AdaptiveReport(read_export(folder / f"{_NAME}.jsonl"), told)
