"""The parts of the READMEs from adaptive records: tables and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dipdefense.evaluation import AdaptiveReport
from dipdefense.evaluation.adaptive.judging import Verdict, attackers
from dipdefense.evaluation.adaptive.names import (
    KNOWN_SEED,
    WORST_CASE,
    Column,
    column_title,
    is_known,
    known,
)
from dipdefense.evaluation.report import table
from dipdefense.evaluation.statistics import in_percent

WORKS = 0.5
"""The accuracy on clean images from which a reconstruction counts as a defence."""


def attacked(report: AdaptiveReport) -> str:
    """A table of every defence of a record, on clean images and at every ε.

    Each ε has a row for the transfer attack and one for the worst case of all attacks.
    """
    columns = [column for column in report.columns if not is_known(column[0])]
    lines = [["", *map(column_title, columns)]]
    rows: list[tuple[str, str, float]] = [("clean", "clean", 0)]
    for epsilon in report.epsilons:
        rows += [(f"defence-unaware (transfer), ε={epsilon:g}", "transfer", epsilon)]
        rows += [(f"**worst case of the attacks**, ε={epsilon:g}", WORST_CASE, epsilon)]
    for name, attack, epsilon in rows:
        found = [report.judged(attack, column, epsilon) for column in columns]
        lines.append([name, *("–" if each is None else _cell(each) for each in found)])
    configuration = report.run.configuration
    level = configuration["adaptive"]["level"]
    reduced = "REDUCED ATTACK, no robust accuracy. " if report.reduced else ""
    about = (
        f'{reduced}Attackers who know the defence, level "{level}". Classifier: {configuration["classifier"]}. '
        f"Images: {report.described}. Each attack's image is judged on fresh draws; accuracy of a single draw in per "
        "cent, with Wilson 95 % intervals."
    )
    return "\n".join([*table(lines), "", " ".join([about, *_with_known_seed(report, columns)])])


def _with_known_seed(report: AdaptiveReport, columns: Sequence[Column]) -> Iterator[str]:
    """A sentence for each reconstruction: its accuracy if the attacker has its seed."""
    for name, budget in columns:
        found = [report.judged(KNOWN_SEED, (known(name), budget), epsilon) for epsilon in report.epsilons]
        left = [f"{_cell(each)} at ε={epsilon:g}" for epsilon, each in zip(report.epsilons, found, strict=True) if each]
        if name == "dip" and left:
            yield f"An attacker who has {column_title((name, budget))}'s seed leaves {', '.join(left)}."


def _network(config: Mapping[str, Any]) -> str:
    size = f" at 1/{config['reduction']} of the images' height and width" if "reduction" in config else ""
    return f"{config['channels']} channels{size}"


def verdict(reports: Sequence[AdaptiveReport]) -> str:
    """The accuracy under attackers who know the defence, in one sentence or two.

    Of each classifier it names the reconstruction of which the least is left, among those that work unattacked.
    """
    least: dict[str, Outcome] = {}
    outcomes = list(_outcomes(reports))
    for outcome in outcomes:
        # What fails on clean images has nothing to lose.
        if outcome.clean.mean < WORKS:
            continue
        other = least.setdefault(outcome.classifier, outcome)
        if outcome.left.mean < other.left.mean:
            least[outcome.classifier] = outcome
    if not outcomes:
        return "Attackers who know the defence have not been measured yet."
    lowered = " and ".join(
        f"from {100 * each.clean.mean:.0f} to {_whole(each.left)} (ε = {each.epsilon:g}, {classifier}; "
        f"{100 * each.left.majority:.0f} % by majority vote)"
        for classifier, each in least.items()
    )
    head = (
        f"Attackers who know the defence lower its accuracy {lowered}" if least else "No network here works unattacked"
    )
    reduced = any(report.reduced for report in reports)
    return f"**{head}.**" + (" The attacks are reduced; stronger ones can only leave less." if reduced else "")


def strongest(reports: Sequence[AdaptiveReport]) -> str:
    """The verdict's table, with a row for each record and budget."""
    header = ["", "level", "n", "ε", "clean", "defence-unaware (transfer)", "**worst case of the attacks**", "by vote"]
    rows = [header]
    for report in reports:
        for each in _outcomes([report]):
            attacks = len(attackers(report.verdicts, each.column, each.epsilon))
            level = f"`{report.run.configuration['adaptive']['level']}`, {attacks} attack{'s' * (attacks > 1)}"
            unaware = report.judged("transfer", each.column, each.epsilon)
            rows.append([
                f"{column_title(each.column)}, {_network(report.run.configuration['dip'])}, {each.classifier}",
                level, str(each.left.n), f"{each.epsilon:g}", _cell(each.clean), _cell(unaware) if unaware else "–",
                f"**{_cell(each.left)}**", f"{100 * each.left.majority:.1f}",
            ])  # fmt: skip
    about = (
        "Accuracy of a single random draw in per cent, on images that are classified correctly without defence, with "
        "Wilson 95 % intervals; by vote: of the majority of the draws. Each attack's image is judged on fresh draws. "
        "Worst case: the strongest attack, chosen image by image."
    )
    reduced = "REDUCED ATTACKS, no robust accuracy. " if any(report.reduced for report in reports) else ""
    return "\n".join([*table(rows), "", reduced + about])


class Outcome(NamedTuple):
    """A reconstruction that was attacked, at the largest ε.

    Attributes:
        classifier: its name.
        column: the reconstruction and its budget.
        epsilon: in 1/255.
        clean: the verdict on clean images.
        left: that under the worst case of the attacks.
    """

    classifier: str
    column: Column
    epsilon: float
    clean: Verdict
    left: Verdict


def _outcomes(reports: Sequence[AdaptiveReport]) -> Iterator[Outcome]:
    for report in reports:
        epsilon = report.epsilons[-1]
        for column in report.columns:
            left, clean = report.judged(WORST_CASE, column, epsilon), report.judged("clean", column)
            if column[0] == "dip" and left is not None and clean is not None:
                yield Outcome(report.run.configuration["classifier"], column, epsilon, clean, left)


def _whole(judged: Verdict) -> str:
    low, high = (100 * share for share in judged.interval(judged.mean))
    return f"{100 * judged.mean:.0f} % [{low:.0f}, {high:.0f}]"


def _cell(judged: Verdict) -> str:
    return in_percent(judged.mean, judged.n)
