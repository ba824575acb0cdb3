"""Attackers who know the defence.

The defence is any module that maps images to images, in front of any classifier.

========================  ==========================================================================================
name                      the attacker
========================  ==========================================================================================
transfer                  attacks the classifier alone by AutoAttack's APGD, and replays the images
bpda                      APGD or PGD through the defence, with the identity in the backward pass
own-gradient              the same with the defence's own gradient, for defences that have one
trajectory                APGD by the mean of the gradients at the purifier's intermediate outputs
bpda-eot                  PGD by gradients that are averaged over random samples of the defence
bpda-eot-targeted         the same towards the most likely wrong class
known-seed                bpda with the very random sample of the defence that will be used
unrolled                  through the first iterations of the purifier, by their true gradient
stand-in                  through a small filter that was fitted to the defence's outputs
low-frequency             bpda whose perturbation has low frequencies alone, which reconstructions keep
square                    AutoAttack's random squares through the defence, without any gradient
========================  ==========================================================================================

Every attack returns images within its threat's ball and in [0, 1], and keeps on attacking what is misclassified
already. A success during an attack proves nothing of a random defence: judge the images on fresh random samples
(:mod:`dipdefense.attacks.adaptive.samples`), and never call the result of a reduced attack robust accuracy.

The gradient-based ones share one loop (:mod:`dipdefense.attacks.adaptive.ascent`), and differ in the gradient.
"""

from collections.abc import Callable
from functools import partial

from dipdefense.attacks.adaptive.bpda import BPDA, BPDAEOT, OwnGradient
from dipdefense.attacks.adaptive.checkpoint import Checkpoint
from dipdefense.attacks.adaptive.known_seed import KnownSeed
from dipdefense.attacks.adaptive.low_frequency import LowFrequency
from dipdefense.attacks.adaptive.square import Square
from dipdefense.attacks.adaptive.stand_in import StandIn
from dipdefense.attacks.adaptive.task import Adaptive
from dipdefense.attacks.adaptive.threat import Threat
from dipdefense.attacks.adaptive.trajectory import Trajectory
from dipdefense.attacks.adaptive.transfer import Transfer
from dipdefense.attacks.adaptive.unrolled import Unrolled

__all__ = [
    "ATTACKS",
    "BPDA",
    "BPDAEOT",
    "Adaptive",
    "Checkpoint",
    "KnownSeed",
    "LowFrequency",
    "OwnGradient",
    "Square",
    "StandIn",
    "Threat",
    "Trajectory",
    "Transfer",
    "Unrolled",
]

ATTACKS: dict[str, Callable[..., Adaptive]] = {
    "transfer": Transfer,
    "bpda": BPDA,
    "own-gradient": OwnGradient,
    "trajectory": Trajectory,
    "bpda-eot": BPDAEOT,
    "bpda-eot-targeted": partial(BPDAEOT, targeted=True),
    "known-seed": KnownSeed,
    "unrolled": Unrolled,
    "stand-in": StandIn,
    "low-frequency": LowFrequency,
    "square": Square,
}
"""The attacks by their names; each takes its hyperparameters as keywords, and without any has the literature's."""
