"""How hard a defence is attacked: the levels by name.

Published evaluations of purifiers take 200 steps with 20 samples each (Lee & Kim
2023). At one ε a random ``DIPPurifier`` is run 105 times an image at the level ``quick``, 742 times at ``standard`` and
20,472 times at ``full``, judging included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dipdefense.arguments import integer
from dipdefense.attacks.adaptive import ATTACKS, Adaptive
from dipdefense.evaluation.adaptive.names import CONTROLS

Settings = Mapping[str, Any]

MOST_DRAWS = 2**14
"""The largest number of draws that judge an attack."""

# Noise is a control too, and has no settings.
_CRAFTED = tuple(name for name in CONTROLS if name != "noise")


@dataclass(frozen=True, kw_only=True)
class Level:
    """The attackers of an evaluation, and how their images are judged.

    Attributes:
        name: "quick", "standard" or "full", or your own.
        attacks: by their name in ``dipdefense.attacks.adaptive.ATTACKS``, the settings of each.
        controls: settings of BPDA for the controls "one-step", "unbounded", "more-steps" and "more-draws"; with
            "samples" among them, of BPDA with EOT.
        draws: fresh draws that judge each attack.
        control_draws: fresh draws that judge a control.
        repeats: further seeds of every attack on the defence, on the first images.
        repeated: how many images these are.

    Raises:
        TypeError, ValueError: an attacker, a control or one of their settings is not known, or a number is outside its
            range.
    """

    name: str
    attacks: Mapping[str, Settings]
    controls: Mapping[str, Settings] = field(default_factory=dict)
    draws: int = 10
    control_draws: int = 3
    repeats: int = 0
    repeated: int = 0

    def __post_init__(self) -> None:
        """Refuse attackers that are not known, and counts below one draw."""
        if unknown := sorted(set(self.attacks) - set(ATTACKS)):
            raise ValueError(f"attacks must be of {', '.join(ATTACKS)}; got {', '.join(unknown)}")
        if unknown := sorted(set(self.controls) - set(_CRAFTED)):
            raise ValueError(f"controls must be of {', '.join(_CRAFTED)}; got {', '.join(unknown)}")
        for name in ("draws", "control_draws"):
            integer(name, getattr(self, name), low=1, high=MOST_DRAWS)
        integer("repeats", self.repeats, low=0)
        integer("repeated", self.repeated, low=1 if self.repeats else 0)
        for name, settings in self.attacks.items():
            ATTACKS[name](**settings)
        for settings in self.controls.values():
            control(settings)

    def settings(self) -> dict[str, Any]:
        """Everything that decides its outcomes, in types that JSON has."""
        return {"level": self.name, "attacks": {**self.attacks}, "controls": {**self.controls}}


def control(settings: Settings) -> Adaptive:
    """The attack of a control: BPDA, with EOT where the settings have samples."""
    return ATTACKS["bpda-eot" if "samples" in settings else "bpda"](**settings)


QUICK = Level(
    name="quick",
    attacks={
        "transfer": {"steps": 20},
        "bpda": {"steps": 10},
        "trajectory": {"steps": 10},
        "low-frequency": {"steps": 10},
    },
    controls={"one-step": {"steps": 1}, "unbounded": {"steps": 10}},
)
STANDARD = Level(
    name="standard",
    attacks={
        "transfer": {"steps": 100},
        "bpda": {"steps": 40},
        "bpda-eot": {"steps": 20, "samples": 4},
        "trajectory": {"steps": 40},
        "known-seed": {"steps": 40},
        "low-frequency": {"steps": 40},
        "unrolled": {"steps": 10, "iterations": 25},
        "stand-in": {"steps": 40},
        "square": {"queries": 100},
    },
    controls={
        "one-step": {"steps": 1},
        "unbounded": {"steps": 20},
        "more-steps": {"steps": 80},
        "more-draws": {"steps": 20, "samples": 8},
    },
    repeats=2,
    repeated=5,
)
FULL = Level(
    name="full",
    attacks={
        "transfer": {"steps": 100},
        "bpda": {"steps": 200},
        "bpda-eot": {"steps": 200, "samples": 20},
        "trajectory": {"steps": 200},
        "known-seed": {"steps": 200},
        "bpda-eot-targeted": {"steps": 100, "samples": 20},
        "unrolled": {"steps": 100, "iterations": 50},
        "stand-in": {"steps": 100, "pairs": 16},
        "low-frequency": {"steps": 200},
        "square": {"queries": 5000},
    },
    controls={
        "one-step": {"steps": 1},
        "unbounded": {"steps": 40},
        "more-steps": {"steps": 400},
        "more-draws": {"steps": 200, "samples": 40},
    },
    repeats=2,
    repeated=20,
)
LEVELS = {level.name: level for level in (QUICK, STANDARD, FULL)}
"""By name, from weak to strong."""
