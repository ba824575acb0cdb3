"""A table or section 6 of the paper, from the command line to the report."""

from __future__ import annotations

from collections.abc import Sequence

from dipdefense.distributed import require_ray
from dipdefense.evaluation import STORE, command_line, open_subject
from dipdefense.paper import architecture, architecture_report
from dipdefense.paper.report import write_report
from dipdefense.paper.tables import measure_table, parse_arguments


def reproduce(*, table: int, description: str) -> None:
    """Read the command line, measure a table, write the report, and print it.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    setting = parse_arguments(table=table, description=description)
    store = setting.out / STORE
    with command_line.script(store):
        with command_line.usage():
            if setting.spread is not None:
                require_ray()
            subject = open_subject(setting)
            subject.fitted(setting.config)
        run = measure_table(setting, subject)
        command_line.finish(write_report(run, table=table, folder=setting.out), store, [run])


def reproduce_architecture(*, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure every variant, write the report, and print it.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    setting = architecture.parse_arguments(description=description, arguments=arguments)
    store = setting.out / STORE
    with command_line.script(store):
        with command_line.usage():
            subject = open_subject(setting)
            architecture.networks(setting.config, subject.shape, names=setting.variants, backend=setting.backend)
        runs = architecture.measure_variants(setting, subject)
        command_line.finish(architecture_report.write_report(runs, folder=setting.out), store, runs.values())
