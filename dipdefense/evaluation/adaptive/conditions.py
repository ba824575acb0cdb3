"""The conditions of an adaptive evaluation: every attacker on every defence.

Clean images and noise are conditions too. An attack on a defence at a budget is judged on that defence at that budget,
on fresh draws. The transfer attack, which knows no defence, is crafted once and judged on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

import dipdefense
from dipdefense.attacks import Attack
from dipdefense.attacks.adaptive import ATTACKS, Adaptive, Checkpoint, Threat
from dipdefense.attacks.adaptive.checkpoint import OtherAttackError, fingerprint
from dipdefense.attacks.adaptive.gradients import HasTrajectory
from dipdefense.attacks.adaptive.samples import purified
from dipdefense.evaluation.adaptive.levels import MOST_DRAWS, Level, control
from dipdefense.evaluation.adaptive.names import (
    CONTROLS,
    KNOWN_SEED,
    UNBOUNDED,
    Column,
    Named,
    Norm,
    is_known,
    known,
    named,
    target_name,
)
from dipdefense.evaluation.defences import Defence, Outcome, clock
from dipdefense.evaluation.protocol import Chosen, Condition, condition_name, content_digest, derive_seed
from dipdefense.evaluation.provenance import digest
from dipdefense.evaluation.runner import Asked
from dipdefense.purifier import DIPPurifier

STATES = "attacks"
"""The folder, inside a report's, of the states from which killed attacks resume."""


@dataclass(frozen=True)
class Target:
    """A defence at one budget, as an attacker meets it.

    Attributes:
        column: defence and budget, as records have them.
        purifier: images to images; every call is a fresh draw from torch's default generators.
        keeps_shape: whether its outputs have the images' shape.
    """

    column: Column
    purifier: nn.Module
    keeps_shape: bool = True

    @property
    def name(self) -> str:
        """Behind "@" in names of conditions."""
        return target_name(*self.column)


@dataclass(frozen=True)
class Attacked:
    """A condition: adversarial examples crafted on one purifier.

    Attributes:
        name: of the condition.
        attack: the attacker.
        purifier: the defence that it attacks.
        threat: the norm and its bound.
        folder: of the attack's state, from which a killed attack resumes; None for none.
        whole_batch: the example of an image depends on the batch that it is in.
    """

    whole_batch: ClassVar[bool] = True

    name: str
    attack: Adaptive
    purifier: nn.Module
    threat: Threat
    folder: Path | None = None

    def __call__(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,  # noqa: ARG002
        seed: Sequence[int],
    ) -> Tensor:
        """The adversarial images; the batch is attacked as a whole."""
        # One seed for all: attacked one by one, networks that fit at once would be fitted one after the other.
        own = derive_seed(*seed)
        attack = partial(self.attack, self.purifier, classifier, images, labels, threat=self.threat, seed=own)
        if self.folder is None:
            return attack()
        self.folder.mkdir(parents=True, exist_ok=True)
        contents = (content_digest(image, label) for image, label in zip(images.cpu(), labels.tolist(), strict=True))
        told = (dipdefense.__version__, images.device.type, self.name, self.attack, self.threat, own, *contents)
        key = digest(f"{part}\n".encode() for part in told)
        state = self.folder / f"{self.name}-{key}.pt"
        try:
            return attack(checkpoint=Checkpoint(state))
        except OtherAttackError:
            # Several classifiers and configurations may be measured into one folder; the first has the short name.
            state = state.with_name(f"{self.name}-{key}-{fingerprint(self.purifier, classifier)}.pt")
            return attack(checkpoint=Checkpoint(state))


def conditions(
    level: Level,
    targets: Sequence[Target],
    *,
    epsilons: Sequence[float],
    norm: Norm = "Linf",
    repeat: int = 0,
    folder: Path | None = None,
) -> dict[str, Condition | None]:
    """Every condition of a level, by name, in the order in which they are measured.

    Args:
        level: the attackers.
        targets: the defences; "none" is attacked by "transfer" alone, which is then a white-box attack.
        epsilons: in 1/255 for Linf, norms for L2.
        norm: "Linf" or "L2".
        repeat: 0 for the first seed of the attacks; of further ones there are attacks on the defences alone.
        folder: of the attacks' states; None keeps none.
    """
    found: dict[str, Condition | None] = {}

    def add(attack: Adaptive, name: Named, target: Target) -> None:
        threat = Threat(epsilon=name.epsilon, norm=norm)
        found[str(name)] = Attacked(str(name), attack, target.purifier, threat, folder)

    # Even where the run does without it, since the transfer attack knows no defence.
    undefended = Target(("none", 0), nn.Identity())
    if not repeat:
        found["clean"] = None
    for epsilon in epsilons:
        if not repeat and norm == "Linf":
            noise = Attack("noise", epsilon)
            found[condition_name(noise)] = noise
        if not repeat and "transfer" in level.attacks:
            add(ATTACKS["transfer"](**level.attacks["transfer"]), Named("transfer", epsilon, norm), undefended)
        for target in (target for target in targets if target.column != ("none", 0)):
            for name, attack in attacks_on(target, level):
                add(attack, Named(name, epsilon, norm, target.name, repeat), target)
            for name, settings in {} if repeat else level.controls.items():
                # Unbounded is unbounded, whatever the other ε.
                bound = UNBOUNDED[norm] if name == "unbounded" else epsilon
                add(control(settings), Named(name, bound, norm, target.name), target)
    return found


def check_conditions(
    found: Mapping[str, Condition | None], classifier: nn.Module, images: Tensor, labels: Tensor
) -> None:
    """Refuse attackers that cannot be run on the images or the classifier.

    Raises:
        TypeError, ValueError: the message says which and why.
    """
    for condition in found.values():
        if isinstance(condition, Attacked):
            condition.attack.check(condition.purifier, classifier, images, labels, threat=condition.threat)


def attacks_on(target: Target, level: Level) -> Iterator[tuple[str, Adaptive]]:
    """The level's attackers that can be run on this defence, but the transfer attack."""
    for name, settings in level.attacks.items():
        if name != "transfer" and applies(name, target):
            yield name, ATTACKS[name](**settings)


def applies(attack: str, target: Target) -> bool:
    """Whether an attacker can be run on a defence.

    Some need what ``DIPPurifier`` has, for one of them without variants of its network, or outputs of the images'
    shape.
    """
    if attack == "trajectory":
        return isinstance(target.purifier, HasTrajectory)
    if attack == "unrolled":
        return isinstance(target.purifier, DIPPurifier) and not target.purifier.config.variants()
    return attack != "stand-in" or target.keeps_shape


def with_known_draws(level: Level, targets: Sequence[Target]) -> list[Defence]:
    """The defences, each judged by the one draw that the attack "known-seed" knew.

    The defence "none" is left out; without that attack in the level, the list is empty. A draw is a batch's, so the
    very batch that was attacked must be judged.
    """
    if KNOWN_SEED not in level.attacks:
        return []
    sample = level.attacks[KNOWN_SEED].get("known", 0)
    own: dict[str, dict[int, nn.Module]] = {}
    for target in targets:
        if target.column != ("none", 0):
            own.setdefault(known(target.column[0]), {})[target.column[1]] = target.purifier
    return [
        Defence(name, tuple(purifiers), partial(_replayed, purifiers, sample), random=False)
        for name, purifiers in own.items()
    ]


def purifying(target: Target) -> Defence:
    """A target as judge: a batch's seeds fix one draw of torch's default generators."""
    name, budget = target.column

    def classify(
        classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[Outcome]:
        return _replayed({budget: target.purifier}, derive_seed(*seeds), classifier, images, budgets, seeds)

    return Defence(name, (budget,), classify)


def _replayed(
    purifiers: Mapping[int, nn.Module],
    sample: int,
    classifier: nn.Module,
    images: Tensor,
    budgets: Sequence[int],
    _: Sequence[int],
) -> Iterator[Outcome]:
    """The outcome of one draw at each budget."""
    for budget in budgets:
        started = clock(images)
        output = purified(purifiers[budget], images, seed=sample)
        scores = classifier(output)
        finite = output.flatten(1).isfinite().all(dim=1).tolist()
        status = ["ok" if fine else "diverged" for fine in finite]
        yield Outcome(budget, scores, None, status, clock(images) - started)


def rounds(level: Level, chosen: Chosen) -> list[tuple[int, Chosen]]:
    """The images of each seed of the attacks: further seeds have only the first few."""
    few = chosen._replace(indices=chosen.indices[: level.repeated], contents=chosen.contents[: level.repeated])
    return [(0, chosen), *((repeat, few) for repeat in range(1, level.repeats + 1))]


MOST_SEED = 2**48
"""The largest seed of an evaluation, whose draws' seeds are larger by a factor of ``MOST_DRAWS``."""


def judging_seeds(level: Level, seed: int) -> tuple[int, ...]:
    """The seeds of the fresh draws that judge an evaluation; two seeds share none.

    More draws add to fewer.
    """
    first = seed * MOST_DRAWS
    return tuple(range(first, first + level.draws))


def asked(level: Level, seeds: Sequence[int]) -> Asked:
    """Which draws judge which condition.

    An attack on a defence is judged on that defence alone.
    """
    few = set(seeds[: level.control_draws])

    def ask(condition: str, defence: str, budget: int, seed: int) -> bool:
        parts = named(condition)
        if is_known(defence) and not (parts is None or parts.attack == KNOWN_SEED):
            return False
        if parts is None:
            return True
        if parts.target not in (None, target_name(defence, budget)):
            return False
        return parts.attack not in CONTROLS or seed in few

    return ask
