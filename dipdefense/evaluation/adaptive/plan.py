"""The cost of an adaptive evaluation before it starts: purifications and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipdefense.attacks.adaptive import Adaptive, Unrolled
from dipdefense.attacks.adaptive.samples import sampled
from dipdefense.evaluation.adaptive.conditions import Attacked, Target, asked
from dipdefense.evaluation.adaptive.levels import Level
from dipdefense.evaluation.adaptive.names import KNOWN_SEED, named
from dipdefense.evaluation.defences import clock
from dipdefense.evaluation.protocol import Condition
from dipdefense.evaluation.report import Section
from dipdefense.purifier import DIPPurifier

# Of a reconstruction, whose every iteration costs the same.
_TIMED_ITERATIONS = 10

# Iterations that one unrolled iteration and its gradient cost, about.
_COST_OF_UNROLLED = 8


@dataclass(frozen=True)
class Cost:
    """The cost of one condition on one defence, in purifications an image.

    Attributes:
        condition: its name.
        target: the defence's.
        attack: to make the image.
        judging: fresh draws that judge it.
        other: the time of all else that the attack does, in purifications.
    """

    condition: str
    target: str
    attack: int
    judging: int
    other: float = 0.0

    @property
    def time(self) -> float:
        """Of all of it, in purifications an image."""
        return self.attack + self.judging + self.other


def costs(level: Level, targets: Sequence[Target], found: Mapping[str, Condition | None]) -> list[Cost]:
    """The cost of every condition on every defence that is judged under it.

    The undefended classifier has none, as it purifies nothing.
    """
    seeds = range(level.draws)
    ask, rows = asked(level, seeds), []
    for name, condition in found.items():
        parts = named(name)
        for target in targets:
            judging = sum(ask(name, *target.column, seed) for seed in seeds)
            replayed = parts is None or (parts.attack, parts.target) == (KNOWN_SEED, target.name)
            if KNOWN_SEED in level.attacks and replayed:
                judging += 1  # by the draw that the attacker knew
            if judging and target.column != ("none", 0):
                crafted = parts is not None and parts.target == target.name and isinstance(condition, Attacked)
                attack = condition.attack.purifications() if crafted else 0  # type: ignore[union-attr]
                other = _unrolled(condition.attack, target) if crafted else 0.0  # type: ignore[union-attr]
                rows.append(Cost(name, target.name, attack, judging, other))
    return rows


def _unrolled(attack: Adaptive, target: Target) -> float:
    """Gradients through unrolled iterations, in purifications."""
    if not isinstance(attack, Unrolled) or not isinstance(target.purifier, DIPPurifier):
        return 0.0
    gradients = attack.restarts * (attack.steps + 1) * attack.samples
    return gradients * _COST_OF_UNROLLED * min(attack.iterations, target.purifier.iters) / target.purifier.iters


def seconds_of(target: Target, classifier: nn.Module, images: Tensor) -> float:
    """Seconds an image of one purification, its classification and the gradient.

    Args:
        target: a reconstruction is timed on its first iterations.
        classifier: behind it.
        images: (N, C, H, W), as many as will be purified at once.
    """
    purifier, scale = target.purifier, 1.0
    if isinstance(purifier, DIPPurifier) and purifier.iters > _TIMED_ITERATIONS:
        scale = purifier.iters / _TIMED_ITERATIONS
        purifier = DIPPurifier(
            _TIMED_ITERATIONS, config=purifier.config, precision=purifier.precision, backend=purifier.backend,
            batch_size=purifier.batch_size, seed=0,
        )  # fmt: skip
    with sampled(0, images.device):
        purified = _timed(lambda: purifier(images), images)
        output = purifier(images).detach().requires_grad_()

        def classified() -> None:
            torch.autograd.grad(classifier(output).logsumexp(dim=1).sum(), output)

        return (scale * purified + _timed(classified, images)) / len(images)


def _timed(work: Callable[[], object], images: Tensor) -> float:
    """Seconds of the second call: the first one warms up."""
    seconds = 0.0
    for _ in range(2):
        started = clock(images)
        work()
        seconds = clock(images) - started
    return seconds


def plan(
    level: Level, rows: Sequence[Cost], seconds: Mapping[str, float], *, images: int, again: Sequence[Cost] = ()
) -> Section:
    """A table of every condition's cost, and the time of all.

    Args:
        level: named in the title.
        rows: from ``costs``.
        seconds: of one purification of one image, by the target's name.
        images: how many.
        again: likewise of a further seed of the attacks, of which the level has several on the first images.
    """
    table = [["condition", "on", "purifications an image", "of these to judge it", "expected time"]]
    for cost in rows:
        own = cost.time * seconds[cost.target] * images
        table.append([cost.condition, cost.target, str(cost.attack + cost.judging), str(cost.judging), duration(own)])
    further = level.repeats * min(level.repeated, images)
    once, repeat = (sum(cost.time * seconds[cost.target] for cost in each) for each in (rows, again))
    total = images * once + further * repeat
    each = ", ".join(f"{1000 * value:.3g} ms ({name})" for name, value in seconds.items())
    count = sum(cost.attack + cost.judging for cost in rows)
    about = (
        f"{count:,} purifications an image, {images} images: about {duration(total)} if nothing is stored yet. One "
        f"purification with its classification and gradient takes {each}; measured just now."
    )
    repeated = []
    if level.repeats:
        count = sum(cost.attack + cost.judging for cost in again)
        repeated.append(
            f"That includes {level.repeats} further seeds of the attacks on the first {min(level.repeated, images)} "
            f"images, {count:,} purifications an image each."
        )
    return Section(f'Plan of the level "{level.name}"', [about, *repeated], table)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as far as they matter.

    Example:
        >>> duration(5), duration(600), duration(86400)
        ('5 s', '10 min', '24 h')
    """
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.3g} h" if hours < 100 else f"{hours:,.0f} h"
