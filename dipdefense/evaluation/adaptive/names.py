"""Names of adaptive attacks, as records have them: ``bpda-8@dip-100#1``.

An attack, its ε, the defence that it was crafted on ("@dip-100": DIP at 100 iterations), and, of several seeds of one
attack, which ("#1"). Without "@" an attack was crafted on the classifier alone.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from dipdefense.evaluation.protocol import digits

Norm = Literal["Linf", "L2"]
Column = tuple[str, int]
"""A defence and its budget."""

UNBOUNDED: dict[Norm, float] = {"Linf": 255.0, "L2": 1000.0}
"""An ε that bounds nothing: in 1/255 for Linf; for L2 a norm that no image of below 300,000 pixels exceeds."""

CONTROLS = ("noise", "one-step", "unbounded", "more-steps", "more-draws")
"""Conditions that say something about the attacks, and nothing about the defence."""

KNOWN_SEED = "known-seed"
"""The attack whose images are judged on the draw that it knew too, as if the defence's seed were fixed or leaked."""

WORST_CASE = "worst case"
"""The name of the accuracy under the strongest attack, image by image."""

_NAME = re.compile(
    r"(?P<attack>[a-z][a-z-]*?)(?P<l2>-l2)?-(?P<epsilon>\d+(?:\.\d+)?(?:e-?\d+)?)(?:@(?P<target>[^#]+))?(?:#(?P<repeat>\d+))?"
)

_TITLES = {
    "clean": "clean", "noise": "random noise (control)", "transfer": "transfer", "bpda": "BPDA",
    "own-gradient": "own gradient", "trajectory": "trajectory",
    "bpda-eot": "BPDA + EOT", "bpda-eot-targeted": "BPDA + EOT, targeted", "known-seed": "known seed",
    "unrolled": "unrolled", "stand-in": "stand-in", "low-frequency": "low frequency", "square": "Square",
    "one-step": "one step (control)", "unbounded": "unbounded (control)", "more-steps": "more steps (control)",
    "more-draws": "more samples (control)", WORST_CASE: "worst case",
}  # fmt: skip
_DEFENCE = {"none": "no defence", "randomisation": "randomisation ×{}", "dip": "DIP {}"}


class Named(NamedTuple):
    """The parts of a condition's name.

    Attributes:
        attack: such as "bpda".
        epsilon: in 1/255 for Linf, the norm itself for L2.
        norm: "Linf" or "L2".
        target: the defence that it was crafted on, such as "dip-100"; None for the classifier alone.
        repeat: 0 for the first seed of the attack.
    """

    attack: str
    epsilon: float
    norm: Norm = "Linf"
    target: str | None = None
    repeat: int = 0

    def __str__(self) -> str:
        """As records have it.

        Example:
            >>> str(Named("bpda", 8, target="dip-100"))
            'bpda-8@dip-100'
        """
        norm = "-l2" if self.norm == "L2" else ""
        target = "" if self.target is None else f"@{self.target}"
        repeat = f"#{self.repeat}" if self.repeat else ""
        return f"{self.attack}{norm}-{digits(self.epsilon)}{target}{repeat}"

    @property
    def control(self) -> bool:
        """Whether it says something about the attacks alone."""
        return self.attack in CONTROLS or self.repeat > 0


def named(condition: str) -> Named | None:
    """The parts of a name; None for a name that is no attack's, such as "clean".

    Example:
        >>> named("bpda-eot-l2-0.5@dip-100#2")
        Named(attack='bpda-eot', epsilon=0.5, norm='L2', target='dip-100', repeat=2)
        >>> named("clean") is None
        True
    """
    match = _NAME.fullmatch(condition)
    if match is None:
        return None
    norm: Norm = "L2" if match["l2"] else "Linf"
    return Named(match["attack"], float(match["epsilon"]), norm, match["target"], int(match["repeat"] or 0))


def known(defence: str) -> str:
    """The name of a defence whose one draw the attacker knows.

    Example:
        >>> known("dip")
        'dip-known-seed'
    """
    return f"{defence}-{KNOWN_SEED}"


def is_known(defence: str) -> bool:
    """Whether ``known`` made this name."""
    return defence.endswith(f"-{KNOWN_SEED}")


def target_name(defence: str, budget: int) -> str:
    """The name of a defence at a budget behind "@"; the same with a known draw.

    Example:
        >>> target_name("dip", 100), target_name("none", 0), target_name("dip-known-seed", 100)
        ('dip-100', 'none', 'dip-100')
    """
    defence = defence.removesuffix(f"-{KNOWN_SEED}")
    return f"{defence}-{budget}" if budget else defence


def title(attack: str) -> str:
    """The name of an attack in reports."""
    return _TITLES.get(attack, attack)


def column_title(column: Column) -> str:
    """The name of a defence in reports.

    Example:
        >>> column_title(("dip", 100))
        'DIP 100'
    """
    defence, known_seed = column[0].removesuffix(f"-{KNOWN_SEED}"), is_known(column[0])
    return _DEFENCE.get(defence, defence).format(column[1]) + (", known seed" if known_seed else "")


def attack_order(attack: str) -> int:
    """The place of an attack in tables; unknown ones come last."""
    names = list(_TITLES)
    return names.index(attack) if attack in names else len(names)
