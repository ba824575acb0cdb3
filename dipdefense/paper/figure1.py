"""Figure 1 of the paper from the command line to its written report.

The true class's confidence against the iterations, for three adversaries at four strengths each, and clean beside them.
"""

from __future__ import annotations

from dipdefense.evaluation import STORE, command_line, open_subject
from dipdefense.paper.figure1_report import write_report
from dipdefense.paper.figure1_setting import measure_figure, parse_arguments


def reproduce(*, description: str | None) -> None:
    """Read the command line, measure, write the report, and print it.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    setting = parse_arguments(description=description)
    store = setting.out / STORE
    with command_line.script(store):
        with command_line.usage():
            opened = open_subject(setting)
            opened.fitted(setting.config)
        run = measure_figure(setting, opened)
        command_line.finish(write_report(run, folder=setting.out), store, [run])
