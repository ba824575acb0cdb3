"""The parts of the READMEs from adaptive records: a row, tables and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dipdefense.evaluation import AdaptiveReport
from dipdefense.evaluation.adaptive.judging import Verdict, attackers
from dipdefense.evaluation.adaptive.names import (
    KNOWN_SEED,
    WORST_CASE,
    Column,
    column_title,
    is_known,
    known,
    named,
    title,
)
from dipdefense.evaluation.statistics import in_percent

WORKS = 0.5
"""The accuracy on clean images from which a reconstruction counts as a defence."""

NOTHING = 0.05
"""The largest accuracy under the strongest attack, by a single sample or by vote, that is called next to nothing."""


def strongest_row(report: AdaptiveReport, columns: Sequence[Column], *, blank: int) -> list[str]:
    """The table row under the strongest attack found, at the largest ε.

    There is none if the report has none of the columns' reconstructions under that attack.
    """
    epsilon = report.epsilons[-1]
    found = [report.judged(WORST_CASE, column, epsilon) for column in columns]
    if all(judged is None for judged, column in zip(found, columns, strict=True) if column[0] == "dip"):
        return []
    n = max(verdict.n for verdict in report.verdicts)
    cells = ["–" if each is None else _cell(each) for each in found]
    return [f"| **strongest attack found, ε={epsilon:g}** (n = {n}) | " + " | ".join([*cells, *["–"] * blank]) + " |"]


def attacked(report: AdaptiveReport) -> str:
    """A table of every defence of a record, on clean images and at every ε.

    Each ε has a row for the transfer attack and one for the strongest attack.
    """
    columns = [column for column in report.columns if not is_known(column[0])]
    lines = ["| | " + " | ".join(map(column_title, columns)) + " |", "| --- " * (len(columns) + 1) + "|"]
    rows: list[tuple[str, str, float]] = [("clean", "clean", 0)]
    for epsilon in report.epsilons:
        rows += [(f"defence-unaware (transfer), ε={epsilon:g}", "transfer", epsilon)]
        rows += [(f"**strongest attack found**, ε={epsilon:g}", WORST_CASE, epsilon)]
    for name, attack, epsilon in rows:
        found = [report.judged(attack, column, epsilon) for column in columns]
        lines.append(f"| {name} | " + " | ".join("–" if each is None else _cell(each) for each in found) + " |")
    configuration = report.run.configuration
    level = configuration["adaptive"]["level"]
    reduced = "REDUCED ATTACK, no robust accuracy. " if report.reduced else ""
    about = (
        f'{reduced}Attackers who know the defence, level "{level}". Classifier: {configuration["classifier"]}. '
        f"Images: {report.described}. Each attack's image is judged on fresh draws; accuracy of a single draw in per "
        "cent, with Wilson 95 % intervals."
    )
    return "\n".join([*lines, "", " ".join([about, *_with_known_seed(report, columns)])])


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
    """The accuracy under attackers who know the defence, as a sentence and a list.

    The list has a line for each record and budget.
    """
    lines: list[str] = []
    least: dict[str, tuple[float, Verdict, Verdict]] = {}
    for report in reports:
        epsilon, configuration = report.epsilons[-1], report.run.configuration
        classifier = configuration["classifier"]
        for column in report.columns:
            left, clean = report.judged(WORST_CASE, column, epsilon), report.judged("clean", column)
            strongest = report.strongest(column, epsilon)
            if column[0] != "dip" or left is None or strongest is None or clean is None:
                continue
            # What fails on clean images has nothing to lose: it has a line, but not the headline.
            if clean.mean >= WORKS and (classifier not in least or left.mean < least[classifier][1].mean):
                least[classifier] = epsilon, left, clean
            ran = ", ".join(_attack(each) for each in attackers(report.verdicts, column, epsilon))
            unaware = report.judged("transfer", column, epsilon)
            lines.append(
                f"- {column_title(column)}, {_network(configuration['dip'])}, {classifier}, "
                f'level "{configuration["adaptive"]["level"]}" ({ran}), n = {left.n}, ε = {epsilon:g}: '
                f"**{_cell(left)} %** under the worst case of these attacks, {100 * left.majority:.1f} % by majority "
                f"vote; {_cell(strongest)} % under {_attack(strongest)} alone"
                + (f"; {_cell(unaware)} % under a defence-unaware transfer attack" if unaware else "")
                + f"; {_cell(clean)} % on clean images."
            )
    if not lines:
        return "Attackers who know the defence have not been measured yet."
    lowered = " and ".join(
        f"from {100 * clean.mean:.0f} to {100 * left.mean:.0f} % (ε = {epsilon:g}, {classifier})"
        for classifier, (epsilon, left, clean) in least.items()
    )
    head = (
        f"Attackers who know the defence lower its accuracy {lowered}" if least else "No network here works unattacked"
    )
    if least and all(min(left.mean, left.majority) <= NOTHING for _, left, _ in least.values()):
        head += ": next to nothing is left"
    reduced = any(report.reduced for report in reports)
    end = " The attacks are reduced; stronger ones can only leave less." if reduced else ""
    scope = "of a single random draw, on images that are classified correctly without defence, with 95 % intervals:"
    return "\n".join([f"**{head}.**{end} Accuracy {scope}", "", *lines])


def _attack(judged: Verdict) -> str:
    parts = named(judged.condition)
    assert parts is not None
    return title(parts.attack)


def _cell(judged: Verdict) -> str:
    return in_percent(judged.mean, judged.n)
