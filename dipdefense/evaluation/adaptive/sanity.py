"""Checks that an evaluation can be believed.

Each passes, fails, flags a property that is no fault, or says that it was not measured; none is hidden. Athalye et al.
2018 (section 3.1) and Carlini et al. 2019 name what a sound evaluation shows. A failed check says that the attacks are
too weak for this defence, and the accuracy under them is an overestimate; or that the defence answers by something
other than the image. Where two accuracies of a random defence are compared, two standard errors of its draws count as
chance: within it no attack is weaker than another, and none is stronger than noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from dipdefense.evaluation.adaptive.judging import Verdict, attackers, worst_case
from dipdefense.evaluation.adaptive.names import Column, named, target_name
from dipdefense.evaluation.adaptive.probes import Probes

Status = Literal["pass", "fail", "flag", "not measured"]

# More steps or draws may lower the accuracy by this much before the attack counts as not converged.
_CONVERGED = 0.05

# The loss must rise by more than rounding, and above that under noise.
_RISES = 1.01

# AutoAttack's targeted losses need this many classes.
_CLASSES = 4

_GRADIENT_FREE = ("square",)
_BLIND = ("transfer", *_GRADIENT_FREE)


class Check(NamedTuple):
    """One check.

    Attributes:
        title: the property that was checked.
        status: "pass" or "fail"; "flag" for a property that is no fault and must be known; or "not measured".
        detail: the figures behind it.
    """

    title: str
    status: Status
    detail: str = ""


class Sanity:
    """The checks of one defence at one budget.

    Args:
        found: verdicts of the whole run.
        column: the defence and its budget.
        probes: its properties, or None where it was not probed.
    """

    def __init__(self, found: Sequence[Verdict], column: Column, probes: Probes | None = None) -> None:
        self.column = column
        self.probes = probes
        own = target_name(*column)
        self._found: dict[tuple[str, float], Verdict] = {}
        for verdict in found:
            parts = named(verdict.condition)
            if verdict.column == column and parts is not None and not parts.repeat and parts.target in (None, own):
                self._found[parts.attack, parts.epsilon] = verdict
        self._clean = next((v for v in found if (v.condition, v.column) == ("clean", column)), None)
        self._epsilons = sorted({epsilon for name, epsilon in self._found if name not in ("unbounded", "noise")})
        self._all = found

    def checks(self) -> list[Check]:
        """All of them, in the order in which they are printed."""
        return [
            self._unbounded(),
            self._no_weaker("iterative attacks are at least as strong as one step", "one-step"),
            self._no_weaker("white-box attacks are at least as strong as the transfer attack", "transfer"),
            self._no_weaker("white-box attacks are at least as strong as Square", "square"),
            self._converged("more steps change nothing", "bpda", "more-steps"),
            self._converged("more samples change nothing", "bpda-eot", "more-draws"),
            self._falls(),
            self._noise(),
            self._loss(),
            *self._probed(),
        ]

    def _unbounded(self) -> Check:
        title = "an unbounded perturbation reaches 0 %"
        found = [verdict for (name, _), verdict in self._found.items() if name == "unbounded"]
        if not found:
            return Check(title, "not measured")
        return Check(title, "pass" if found[0].mean == 0 else "fail", f"{_percent(found[0].mean)}")

    def _chance(self, one: Verdict, other: Verdict) -> float:
        """How large a difference may be by chance: two standard errors of the draws."""
        return 2 * math.hypot(*(self._error(verdict) for verdict in (one, other)))

    def _error(self, verdict: Verdict) -> float:
        """The standard error of a verdict's mean that comes from the draws.

        Where a random defence was asked once an image, it is that of as many independent draws, which is no smaller.
        """
        random = self.probes is not None and self.probes.randomised
        if not random or any(len(draws) > 1 for draws in verdict.draws):
            return verdict.error
        return math.sqrt(verdict.mean * (1 - verdict.mean) / verdict.n)

    def _white_box(self, epsilon: float) -> Verdict | None:
        """The strongest attack through the defence at this ε."""
        through = [v for v in attackers(self._all, self.column, epsilon) if _attack(v) not in _BLIND]
        return min(through, key=lambda verdict: verdict.mean, default=None)

    def _no_weaker(self, title: str, than: str) -> Check:
        pairs = [
            (epsilon, strong, weak)
            for epsilon in self._epsilons
            if (strong := self._white_box(epsilon)) and (weak := self._found.get((than, epsilon)))
        ]
        cases = [(e, s.mean, w.mean, s.mean <= w.mean + self._chance(s, w), _attack(s)) for e, s, w in pairs]
        return _compared(title, cases)

    def _converged(self, title: str, name: str, more: str) -> Check:
        pairs = [
            (epsilon, self._found[name, epsilon], self._found[more, epsilon])
            for epsilon in self._epsilons
            if (name, epsilon) in self._found and (more, epsilon) in self._found
        ]
        held = [own.mean - m.mean <= _CONVERGED + self._chance(own, m) for _, own, m in pairs]
        return _compared(
            title, [(e, m.mean, own.mean, holds, more) for (e, own, m), holds in zip(pairs, held, strict=True)]
        )

    def _falls(self) -> Check:
        title = "accuracy falls with ε"
        cases = [
            (epsilon, worst_case(over))
            for epsilon in self._epsilons
            if (over := attackers(self._all, self.column, epsilon))
        ]
        if len(cases) < 2:
            return Check(title, "not measured", "one ε")
        falling = all(
            after.mean <= before.mean + self._chance(before, after) for (_, before), (_, after) in pairwise(cases)
        )
        detail = ", ".join(f"{_percent(case.mean)} at {epsilon:g}" for epsilon, case in cases)
        return Check(title, "pass" if falling else "fail", detail)

    def _noise(self) -> Check:
        title = "attacks are stronger than random noise of the same norm"
        pairs = [
            (epsilon, strong, noise)
            for epsilon in self._epsilons
            if (strong := self._white_box(epsilon)) and (noise := self._found.get(("noise", epsilon)))
        ]
        cases = [(e, s.mean, n.mean, s.mean + self._chance(s, n) < n.mean, _attack(s)) for e, s, n in pairs]
        return _compared(title, cases)

    def _loss(self) -> Check:
        title = "the loss rises under attack, by more than under noise"
        strong = [(e, v) for e in self._epsilons if (v := self._white_box(e)) is not None]
        if self._clean is None or not strong:
            return Check(title, "not measured")
        clean = self._clean.loss
        noise = {e: self._found["noise", e].loss if ("noise", e) in self._found else clean for e, _ in strong}
        behind = {e: f" (noise {noise[e]:.3g})" if ("noise", e) in self._found else "" for e, _ in strong}
        detail = ", ".join(f"{verdict.loss:.3g}{behind[e]} at {e:g}" for e, verdict in strong)
        rises = all(verdict.loss > _RISES * max(clean, noise[e]) for e, verdict in strong)
        return Check(title, "pass" if rises else "fail", f"{clean:.3g} on clean images, {detail}")

    def _probed(self) -> Iterator[Check]:
        if self.probes is None:
            yield Check("properties of the defence", "not measured")
            return
        p = self.probes
        fresh = "the judging draws are fresh: a defence that samples gives another output for another seed"
        yield Check(fresh, "fail" if p.samples and not p.randomised else "pass", _fresh(p))
        yield Check("another image gets another output", "pass" if p.looks else "fail")
        repeats = "one seed gives one output, whatever was asked in between"
        yield Check(repeats, "pass" if p.repeatable else "fail", "" if p.repeatable else "on a GPU it may be rounding")
        yield Check("AutoAttack: the output is not random", *_flag(p.randomised, "it is random"))
        yield Check("AutoAttack: no optimisation at inference", *_flag(p.optimises, "it optimises"))
        yield Check("AutoAttack: outputs are logits, no probabilities", "fail" if p.probabilities else "pass")
        zero = f"{p.zero_gradients} of {p.images} images"
        yield Check("AutoAttack: no zero gradients", "fail" if p.zero_gradients else "pass", zero)
        square = self._no_weaker("", "square").status
        yield Check("AutoAttack: Square is no stronger than the gradients", square)
        few = p.classes < _CLASSES
        yield Check("AutoAttack: enough classes for its losses", "fail" if few else "pass", f"{p.classes}")


def leaderboards(probes: Probes | None) -> str:
    """The sentence on leaderboards for a random or optimising defence; else empty."""
    if probes is None or not (probes.randomised or probes.optimises):
        return ""
    traits = [
        *(["is randomised"] if probes.randomised else []),
        *(["optimises at inference"] if probes.optimises else []),
    ]
    return (
        f"This defence {' and '.join(traits)}. RobustBench excludes such defences: its standard attack takes one "
        "deterministic pass with a gradient for granted, so a random or optimising one can seem robust to it without "
        "being so. No figure here compares with a leaderboard's."
    )


def _flag(raised: bool, detail: str) -> tuple[Status, str]:
    """A property that is no fault and must be known."""
    return ("flag", detail) if raised else ("pass", "")


def _fresh(probes: Probes) -> str:
    if not probes.samples:
        return "it draws no random numbers: all draws are one"
    return "" if probes.randomised else "its draw is fixed, so that attacker and judge have the same: the seed is known"


def _compared(title: str, cases: Sequence[tuple[float, float, float, bool, str]]) -> Check:
    """Of several ε: whether every comparison holds, and the two accuracies of each."""
    if not cases:
        return Check(title, "not measured")
    detail = ", ".join(f"{_percent(one)} ({name}) : {_percent(two)} at {e:g}" for e, one, two, _, name in cases)
    return Check(title, "pass" if all(case[3] for case in cases) else "fail", detail)


def _attack(verdict: Verdict) -> str:
    parts = named(verdict.condition)
    return "" if parts is None else parts.attack


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
