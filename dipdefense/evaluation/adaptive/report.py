"""The report of an adaptive evaluation: a table, sanity checks, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from dipdefense.config import PAPER_BUDGETS, DIPConfig
from dipdefense.evaluation.adaptive.judging import Verdict, attackers, paired, verdicts, worst_case
from dipdefense.evaluation.adaptive.names import (
    WORST_CASE,
    Column,
    attack_order,
    column_title,
    is_known,
    named,
    target_name,
    title,
)
from dipdefense.evaluation.adaptive.plot import accuracy_by_epsilon
from dipdefense.evaluation.adaptive.probes import Probes
from dipdefense.evaluation.adaptive.sanity import Check, Sanity, leaderboards
from dipdefense.evaluation.protocol import DEFENCES
from dipdefense.evaluation.records import COLUMNS, Run, as_json, check_record
from dipdefense.evaluation.report import Section, markdown, provenance, reduced_setting, text
from dipdefense.evaluation.statistics import in_percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATEMENT = (
    "Attackers who know the defence. A reduced attack is reported as such and never called robust accuracy: a stronger "
    "attack can only lower these figures."
)
_LITERATURE = "published evaluations of purifiers take 200 steps with 20 samples each (Lee & Kim 2023)"
_JUDGED = (
    "Each attack's image is judged on {draws} fresh draws of the defence that the attack never saw{few}. A cell is the "
    "accuracy of a single draw with its Wilson 95 % interval / of the worst draw / of the majority vote, in per cent. "
    "The worst case takes the strongest attack image by image, chosen on one half of the draws and judged on the "
    "other; or one attack for all images, where that leaves less."
)
_PAIRED = (
    "The majority vote under each defence's own worst case, on the same images: how many only this defence classifies "
    "correctly : how many only the undefended classifier does, and the exact two-sided McNemar p."
)


# Attacks that need a trajectory, a reconstruction, or outputs of the images' shape.
_OF_SOME = {"trajectory", "unrolled", "stand-in"}


@dataclass(frozen=True)
class AdaptiveReport:
    """The accuracy that attackers who know a defence leave; it prints as a table.

    Attributes:
        run: the outcomes, from which everything else follows.
        probes: properties of each defence, by its name behind "@" in conditions.

    Example:
        >>> print(report)  # doctest: +SKIP
        >>> report.plot().savefig("accuracy.png")  # doctest: +SKIP
        >>> AdaptiveReport.from_json(report.to_json()) == report  # doctest: +SKIP
        True
    """

    run: Run
    probes: Mapping[str, Probes] = field(default_factory=dict)

    def __str__(self) -> str:
        """The report for a terminal."""
        return text(self.sections())

    def markdown(self) -> str:
        """The report in Markdown."""
        return markdown(self.sections())

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Every condition on every defence, judged."""
        return verdicts(self.run.records)

    @cached_property
    def columns(self) -> list[Column]:
        """The defences and their budgets, in the order of tables."""
        places = {name: place for place, name in enumerate(DEFENCES)}
        return sorted({v.column for v in self.verdicts}, key=lambda c: (places.get(c[0], len(places)), c))

    @cached_property
    def epsilons(self) -> list[float]:
        """The strengths of the attacks, ascending."""
        parts = (named(verdict.condition) for verdict in self.verdicts)
        return sorted({part.epsilon for part in parts if part is not None and part.attack != "unbounded"})

    @cached_property
    def reduced(self) -> bool:
        """Whether the attack is less than the level "full".

        Of that level, every attack counts that can be run on the defence.
        """
        level = self.run.configuration["adaptive"]
        particular = set() if any(column[0] == "dip" for column in self.columns) else _OF_SOME
        if self._config is not None and self._config.variants():
            particular = particular | {"unrolled"}
        return bool(level["level"] != "full" or set(level["attacks"]) - particular - set(self._names()))

    def judged(self, attack: str, column: Column, epsilon: float | None = None) -> Verdict | None:
        """The verdict on an attack, or None where it was not measured.

        The attack is a name such as "bpda", "clean" or "worst case".
        """
        if attack == WORST_CASE:
            over = attackers(self.verdicts, column, epsilon or 0)
            return worst_case(over) if over else None
        for verdict in self.verdicts:
            parts = named(verdict.condition)
            if verdict.column != column:
                continue
            if parts is None:
                if verdict.condition == attack:
                    return verdict
            elif (
                (parts.attack, parts.repeat) == (attack, 0)
                and parts.target in (None, target_name(*column))
                and (attack == "unbounded" or parts.epsilon == epsilon)
            ):
                return verdict
        return None

    def strongest(self, column: Column, epsilon: float) -> Verdict | None:
        """The one attack under which a single draw has the least accuracy."""
        return min(attackers(self.verdicts, column, epsilon), key=lambda verdict: verdict.mean, default=None)

    def sanity(self, column: Column) -> list[Check]:
        """The checks of one defence."""
        return Sanity(self.verdicts, column, self.probes.get(target_name(*column))).checks()

    def sections(self) -> Iterator[Section]:
        """The report's parts."""
        yield Section("Attackers who know the defence", [self._banner(), STATEMENT, self._subject()])
        for epsilon in self.epsilons:
            yield from self._table(epsilon)
        if repeated := self._repeated():
            about = "Accuracy of a single draw on the same first images, by the seed of the attack."
            yield Section("Several seeds of the attacks", [about], repeated)
        for column in self.columns:
            if column != ("none", 0) and not is_known(column[0]):
                yield self._sanity(column)
        yield Section("Provenance", items=list(provenance(self.run)))

    def plot(self) -> Figure:
        """Accuracy against ε, a panel a defence and a line an attacker.

        Raises:
            ImportError: Matplotlib is missing.
        """
        curves = {}
        for column in self.columns:
            clean = self.judged("clean", column)
            names = ["noise", *self._names(), WORST_CASE]
            lines = {name: [(e, v) for e in self.epsilons if (v := self.judged(name, column, e))] for name in names}
            # Of no perturbation, every attack's accuracy is the clean images'.
            own = {name: [*([(0.0, clean)] if clean else []), *line] for name, line in lines.items() if line}
            if own:
                curves[column] = own
        configuration = self.run.configuration
        level = configuration["adaptive"]["level"]
        reduced = "Reduced attack, no robust accuracy. " if self.reduced else ""
        n = max(verdict.n for verdict in self.verdicts)
        return accuracy_by_epsilon(
            curves,
            about=f"{reduced}Level {level}, {configuration['classifier']}, n = {n}. "
            "Band: 95 % interval (Wilson) of the worst case.",
        )

    def to_json(self) -> str:
        """Everything, as text."""
        run = self.run
        records = [dict(zip(COLUMNS, astuple(record), strict=True)) for record in run.records]
        stored = {
            "configuration": run.configuration, "sessions": run.sessions, "skipped": run.skipped, "records": records,
            "probes": {name: each.to_json() for name, each in self.probes.items()},
        }  # fmt: skip
        return as_json(stored)

    @classmethod
    def from_json(cls, stored: str) -> Self:
        """The report that ``to_json`` wrote.

        Raises:
            ValueError: it is not such a report; the message names the field.
        """
        try:
            told = json.loads(stored)
            records = tuple(check_record(values) for values in told["records"])
            sessions = {int(number): each for number, each in told["sessions"].items()}
            run = Run(told["configuration"], records, sessions, tuple(told["skipped"]))
            return cls(run, {name: Probes.from_json(each) for name, each in told["probes"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is not a report of an adaptive evaluation: {error!r}") from error

    def _banner(self) -> str:
        level = self.run.configuration["adaptive"]
        described = "; ".join(f"{title(name)} {_settings(level['attacks'][name])}" for name in self._names())
        reduced = f'REDUCED ATTACK, level "{level["level"]}": {_LITERATURE}. ' if self.reduced else ""
        return " ".join([*self._reduced(), f"{reduced}Attacks: {described or 'none'}."])

    def _reduced(self) -> list[str]:
        """The warning that the reconstruction is not the paper's, or nothing where it is.

        It falls short where its largest budget is below the paper's smallest.
        """
        budgets = [budget for defence, budget in self.columns if defence == "dip"]
        if not budgets or (config := self._config) is None:
            return []
        less = []
        if max(budgets) < min(PAPER_BUDGETS):
            less.append(f"{max(budgets)} iterations at most instead of {min(PAPER_BUDGETS)} or more")
        if (stopping := self.run.configuration.get("stopping")) is not None:
            less.append(f'each image\'s fit ended by the rule "{stopping["rule"]}" instead of at a fixed budget')
        less += config.differences()
        return reduced_setting(less)

    @property
    def _config(self) -> DIPConfig | None:
        """The reconstruction's network, where there is one."""
        stored = self.run.configuration.get("dip")
        return None if stored is None else DIPConfig.from_json(stored)

    @cached_property
    def described(self) -> str:
        """The number of images, and whether the classifier alone is correct on all."""
        n = len({record.image for record in self.run.records})
        undefended = self.judged("clean", ("none", 0))
        return f"{n}{' that it classifies correctly' if undefended is not None and undefended.mean == 1 else ''}"

    def _subject(self) -> str:
        configuration = self.run.configuration
        norm = next((p.norm for v in self.verdicts if (p := named(v.condition)) is not None), "Linf")
        unit = "ε in 1/255" if norm == "Linf" else "ε is the norm"
        clean = [v for v in self.verdicts if v.condition == "clean"]
        few = [v for v in self.verdicts if (p := named(v.condition)) is not None and p.control and not p.repeat]
        draws = max((len(v.draws[0]) for v in clean), default=1)
        controls = f", controls on {max(len(v.draws[0]) for v in few)}" if few else ""
        judged = _JUDGED.format(draws=draws, few=controls)
        return (
            f'Classifier: {configuration["classifier"]}. Data: "{configuration["data"]}". Images: {self.described}. '
            f"Norm: {norm}, {unit}. {judged}"
        )

    def _names(self) -> list[str]:
        """The level's attacks that were measured, in the order of tables.

        JSON has them in alphabetical order.
        """
        measured = {p.attack for verdict in self.verdicts if (p := named(verdict.condition)) is not None}
        return sorted(measured.intersection(self.run.configuration["adaptive"]["attacks"]), key=attack_order)

    def _attacks(self, epsilon: float) -> list[str]:
        """The rows of a table, in the order of the level."""
        names = ["clean", "noise", *self._names(), WORST_CASE]
        return [n for n in names if any(self.judged(n, column, epsilon) for column in self.columns)]

    def _table(self, epsilon: float) -> Iterator[Section]:
        rows = [["attack", *map(column_title, self.columns)]]
        for attack in self._attacks(epsilon):
            found = [self.judged(attack, column, epsilon) for column in self.columns]
            rows.append([title(attack), *map(cell, found)])
        strongest = [
            f"{column_title(column)}: {title(parts.attack)}, {percent(verdict.mean)}"
            for column in self.columns
            if (verdict := self.strongest(column, epsilon)) and (parts := named(verdict.condition))
        ]
        n = max(verdict.n for verdict in self.verdicts)
        about = [f"Strongest single attack. {'; '.join(strongest)}."] if strongest else []
        yield Section(f"Accuracy at ε = {epsilon:g}, n = {n}", about, rows)
        base = self.judged(WORST_CASE, ("none", 0), epsilon)
        tests = [["defence", "split", "p"]]
        for column in self.columns[1:] if base else []:
            if own := self.judged(WORST_CASE, column, epsilon):
                split = paired(own, base)  # type: ignore[arg-type]
                tests.append([column_title(column), f"{split.only_first} : {split.only_second}", f"{split.p:.2g}"])
        if len(tests) > 1:
            yield Section(f"Against no defence at ε = {epsilon:g}", [_PAIRED], tests)

    def _repeated(self) -> list[list[str]]:
        rows = []
        again = [(v, p) for v in self.verdicts if (p := named(v.condition)) is not None and p.repeat]
        for first in {(p.attack, p.epsilon, v.column): None for v, p in again}:
            attack, epsilon, column = first
            own = [v for v, p in again if (p.attack, p.epsilon, v.column) == first]
            images = set(own[0].images)
            base = self.judged(attack, column, epsilon)
            means = [_mean_of(v, images) for v in ([base] if base else []) + own]
            row = [title(attack), f"{epsilon:g}", column_title(column), str(len(images))]
            rows.append([*row, ", ".join(percent(mean) for mean in means)])
        return [["attack", "ε", "defence", "n", "by seed"], *rows] if rows else []

    def _sanity(self, column: Column) -> Section:
        about = leaderboards(self.probes.get(target_name(*column)))
        items = [
            f"{check.status.upper()}: {check.title}{f' ({check.detail})' if check.detail else ''}"
            for check in self.sanity(column)
        ]
        return Section(f"Sanity checks: {column_title(column)}", [about] if about else [], items=items)


def cell(verdict: Verdict | None) -> str:
    """A verdict in a table: mean with its interval, worst and majority."""
    if verdict is None:
        return "–"
    mean = in_percent(verdict.mean, verdict.n)
    return f"{mean} / {percent(verdict.worst)} / {percent(verdict.majority)}"


def percent(share: float) -> str:
    """A share in per cent, with one digit.

    Example:
        >>> percent(0.125)
        '12.5'
    """
    return f"{100 * share:.1f}"


def _settings(each: Mapping[str, Any]) -> str:
    return f"({', '.join(f'{value} {name}' for name, value in each.items())})"


def _mean_of(verdict: Verdict, images: set[str]) -> float:
    own: Sequence[float] = [s for name, s in zip(verdict.images, verdict.single, strict=True) if name in images]
    return sum(own) / len(own)
