"""Stopping rules compared with fixed budgets: command line, report and plot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from dipdefense.config import PAPER_BUDGETS, DIPConfig
from dipdefense.evaluation import STORE, Run, Setting, command_line, measure, open_subject
from dipdefense.evaluation.early_stopping import one_fit
from dipdefense.evaluation.protocol import attack_named, condition_order, condition_title
from dipdefense.evaluation.report import Rows, Section, markdown, png, provenance, reduced_setting, write_files
from dipdefense.evaluation.statistics import Cell, compare, holm, leaning, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONDITIONS = ("clean", "fgsm-5", "bi-10")
"""Unattacked, and the paper's weaker and stronger kind of attack."""

_AVERAGE = "average"
_LEVEL = 0.05


def compare_rules(*, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write report and plot, and print the report.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    adders = command_line.add_subject, command_line.add_network, command_line.add_budgets, command_line.add_precision
    parser = command_line.parser(description, *adders)
    add = parser.add_argument
    add("--conditions", nargs="+", default=CONDITIONS, help="clean, fgsm-5, bi-10, … (default: %(default)s)")
    given = command_line.parse(parser, _defaults, arguments)
    setting = Setting(**command_line.subject_of(given))
    store = setting.out / STORE
    with command_line.script(store):
        with command_line.usage():
            conditions = {name: attack_named(name) for name in given.conditions}
            if unknown := [name for name, attack in conditions.items() if attack is None and name != "clean"]:
                raise ValueError(f"--conditions takes clean and attacks such as fgsm-5, got {', '.join(unknown)}")
            subject = open_subject(setting)
            config = subject.fitted(command_line.CONFIGS[given.config]())
        for warning in _reduced(given.budgets[-1], config):
            print(warning, file=sys.stderr)
        defences = one_fit(tuple(given.budgets), config=config, precision=given.precision, device=setting.device)
        run = measure(setting, subject, conditions=conditions, defences=defences, exports="stopping.jsonl")
        command_line.finish(write_report(run, setting.out), store, [run])


def write_report(run: Run, folder: Path) -> list[Path]:
    """Write stopping.md, stopping.png and the records, stopping.jsonl; their paths."""
    compared = Compared.of(run)
    files: dict[str, str | bytes] = {
        "stopping.md": markdown(_sections(run, compared)),
        "stopping.png": png(plot(compared)),
    }
    return write_files(folder, files, {"stopping.jsonl": run})


@dataclass(frozen=True)
class Compared:
    """The cells of a run, and the fixed budgets that the rules are held against.

    Attributes:
        conditions: in order, without the average.
        cells: by condition, or "average", and (defence, budget).
        iterations: by condition and rule, those of each fit.
        last: the last budget.
        best: the fixed budget of the highest accuracy on average over the conditions; the least of several.
    """

    conditions: tuple[str, ...]
    cells: Mapping[str, Mapping[tuple[str, int], Cell]]
    iterations: Mapping[tuple[str, str], Sequence[int]]
    last: int
    best: int

    @classmethod
    def of(cls, run: Run) -> Compared:
        """The comparison that a run's records allow."""
        conditions = tuple(sorted({record.condition for record in run.records}, key=condition_order))
        cells: dict[str, dict[tuple[str, int], Cell]] = {}
        for cell in summarise(run.records, averaged=conditions):
            cells.setdefault(cell.condition, {})[cell.column] = cell
        iterations: dict[tuple[str, str], list[int]] = {}
        for record in run.records:
            if record.iterations is not None:
                for condition in (record.condition, _AVERAGE):
                    iterations.setdefault((condition, record.defence), []).append(record.iterations)
        fixed = {budget: cell for (name, budget), cell in cells[_AVERAGE].items() if name == "dip"}
        best = min(fixed, key=lambda budget: (-fixed[budget].accuracy, budget))
        return cls(conditions, cells, iterations, max(fixed), best)

    @property
    def rules(self) -> list[str]:
        """Names of the rules."""
        return [name for condition, name in self.iterations if condition == _AVERAGE]

    @property
    def budgets(self) -> list[int]:
        """The fixed ones."""
        return [budget for name, budget in self.cells[_AVERAGE] if name == "dip"]

    def rule(self, condition: str, name: str) -> Cell:
        """A rule's cell."""
        return self.cells[condition][name, self.last]

    def fixed(self, condition: str, budget: int) -> Cell:
        """A fixed budget's cell."""
        return self.cells[condition]["dip", budget]

    def as_costly(self, name: str) -> int:
        """The fixed budget nearest to the iterations that a rule takes on average."""
        mean = fmean(self.iterations[_AVERAGE, name])
        return min(self.budgets, key=lambda budget: abs(budget - mean))


def _sections(run: Run, compared: Compared) -> Iterator[Section]:
    best = compared.fixed(_AVERAGE, compared.best)
    n, several = best.n, len(best.outcomes)
    seeds = f", of {several} seeds' mean; the tests are of the first seed" if several > 1 else ""
    reduced = _reduced(compared.last, DIPConfig.from_json(run.configuration["dip"]))
    yield Section(
        "Early stopping against fixed budgets",
        [
            f"{n} images that the classifier classifies correctly; {run.configuration['classifier']}; "
            f"{run.configuration['data']}; defence-unaware attacks. Every rule and budget is judged on the same fits. "
            f"Accuracy in per cent, Wilson 95 % intervals{seeds}.",
            f"The best fixed budget is {compared.best}, chosen for its accuracy on average over the conditions, on "
            "these very images: the comparison favours it. Behind a rule's accuracy: how many images it alone "
            "classifies correctly : how many that budget alone does, and the exact McNemar p; of an average, on how "
            "many images each has the higher share, and the sign test's p.",
            *reduced,
        ],
        items=list(_verdicts(compared)),
    )
    yield Section("Accuracy", table=list(_accuracies(compared)))
    yield Section(
        "Iterations",
        [
            "Mean of the fits, least and most, and the share that the rule ended before the last budget. The output "
            "taken is an earlier one, by the rule's patience; the fits' cost are the iterations."
        ],
        table=list(_costs(compared)),
    )
    yield Section("The run", items=list(provenance(run)))


def _verdicts(compared: Compared) -> Iterator[str]:
    """Each rule against two fixed budgets, on average over the conditions.

    The two are the best budget and the one of the rule's cost.
    """
    rules = compared.rules
    for title, budgets in (
        ("the best fixed budget", [compared.best for _ in rules]),
        ("the fixed budget of its cost", [compared.as_costly(name) for name in rules]),
    ):
        pairs = [
            (compared.rule(_AVERAGE, name), compared.fixed(_AVERAGE, budget))
            for name, budget in zip(rules, budgets, strict=True)
        ]
        tests = [compare(*pair) for pair in pairs]
        corrected = holm([test.p for test in tests])
        for name, budget, (rule, fixed), test, p in zip(rules, budgets, pairs, tests, corrected, strict=True):
            way = leaning(rule, fixed) if p < _LEVEL else 0
            verdict = {1: "yes", 0: "no, not decided", -1: "no, it is below"}[way]
            yield (
                f"Does {name} beat {title}, {budget}? {verdict}: {_percent(rule.accuracy)} against "
                f"{_percent(fixed.accuracy)} on average; {test.only_first} : {test.only_second} images (sign test, "
                f"p = {p:.2g}, corrected for {len(rules)} rules by Holm's procedure)"
            )


def _accuracies(compared: Compared) -> Iterator[list[str]]:
    """A column a condition: every fixed budget, then every rule with its test.

    The test is against the best fixed budget.
    """
    conditions = (*compared.conditions, _AVERAGE)
    yield ["", *(_title(condition) for condition in conditions)]
    for budget in compared.budgets:
        best = " (best)" if budget == compared.best else ""
        yield [f"{budget} iterations{best}", *(compared.fixed(name, budget).percent for name in conditions)]
    for rule in compared.rules:
        row = []
        for name in conditions:
            test = compare(compared.rule(name, rule), compared.fixed(name, compared.best))
            row.append(f"{compared.rule(name, rule).percent}; {test.only_first} : {test.only_second}, p = {test.p:.2g}")
        yield [rule, *row]


def _costs(compared: Compared) -> Rows:
    conditions = (*compared.conditions, _AVERAGE)
    rows = [["", *(_title(condition) for condition in conditions)]]
    for rule in compared.rules:
        row = [rule]
        for condition in conditions:
            found = compared.iterations[condition, rule]
            ended = sum(iterations < compared.last for iterations in found) / len(found)
            row.append(f"{fmean(found):.0f} [{min(found)}, {max(found)}], {ended:.0%}")
        rows.append(row)
    return rows


def plot(compared: Compared) -> Figure:
    """Accuracy against iterations, by condition.

    Fixed budgets are lines, and rules are points at their mean iterations.
    """
    from matplotlib.figure import Figure

    conditions = (*compared.conditions, _AVERAGE)
    figure = Figure(figsize=(3.4 * len(conditions), 4), layout="constrained")
    panels = figure.subplots(1, len(conditions), sharey=True)
    for panel, condition in zip(panels, conditions, strict=True):
        fixed = [compared.fixed(condition, budget) for budget in compared.budgets]
        low, high = zip(*(cell.interval for cell in fixed), strict=True)
        panel.plot(compared.budgets, [cell.accuracy for cell in fixed], color="black", label="fixed budgets")
        panel.fill_between(compared.budgets, low, high, color="black", alpha=0.1, linewidth=0)
        for place, rule in enumerate(compared.rules):
            cell = compared.rule(condition, rule)
            ends = cell.interval
            panel.errorbar(
                fmean(compared.iterations[condition, rule]), cell.accuracy,
                yerr=[[cell.accuracy - ends.low], [ends.high - cell.accuracy]],
                fmt="osD^v<>"[place % 7], color=f"C{place}", label=rule, capsize=2,
            )  # fmt: skip
        panel.axvline(compared.best, color="black", linestyle=":", linewidth=1)
        panel.set(title=_title(condition), xlabel="iterations", ylim=(-0.03, 1.03))
        panel.set_xlim(left=0)
    panels[0].set_ylabel("accuracy")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.suptitle(
        f"Early stopping, {fixed[0].n} images, defence-unaware; dotted: the best fixed budget ({compared.best}); "
        "95 % intervals",
        fontsize=10,
    )
    return figure


def _title(condition: str) -> str:
    return "average of these" if condition == _AVERAGE else condition_title(condition)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _reduced(last: int, config: DIPConfig) -> list[str]:
    few = [f"{last} iterations at most instead of {PAPER_BUDGETS[-1]}"] if last < PAPER_BUDGETS[-1] else []
    return reduced_setting(few + config.differences())


def _defaults(given: argparse.Namespace) -> dict[str, Any]:
    """Every fiftieth iteration; on a CPU and packaged images, a setting of minutes."""
    if torch.device(given.device).type != "cpu":
        return {"config": "paper", "budgets": range(50, 1001, 50), "batch": 32}
    few = {"images": 2} if given.data is None else {}
    last = 300 if given.data is None else 1000
    return {"config": "compact", "budgets": range(50, last + 1, 50), "batch": 1} | few
