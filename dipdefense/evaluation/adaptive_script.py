"""``benchmarks/adaptive.py`` from the command line to its written report."""

from __future__ import annotations

import sys

from dipdefense.evaluation import STORE, command_line, open_subject
from dipdefense.evaluation.adaptive_benchmark import measure_adaptive, measured, opponents, parse_arguments
from dipdefense.evaluation.adaptive_plan import plan, prices, seconds_of
from dipdefense.evaluation.exports import export
from dipdefense.evaluation.report import text


def reproduce(description: str | None) -> None:
    """Read the command line, print the plan, measure, write the report, and print it.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    setting = parse_arguments(description)
    store = setting.out / STORE
    with command_line.script(store):
        with command_line.usage():
            subject = open_subject(setting)
            against = opponents(setting, subject)
        few = subject.data.stack(subject.chosen.indices[: setting.batch]).images.to(setting.device)
        seconds = {target.name: seconds_of(target, subject.classifier, few) for target in against.targets}
        priced = prices(setting.level, against.targets, measured(setting, against))
        print(text([plan(setting.level, priced, seconds, images=len(subject.chosen.indices))]), flush=True)
        if setting.dry_run:
            return
        run = measure_adaptive(setting, subject, against)
        setting.out.mkdir(parents=True, exist_ok=True)
        export(run, setting.out / "adaptive.jsonl")
        if run.skipped:
            print(f"{len(run.skipped)} images could not be read and were skipped", file=sys.stderr)
