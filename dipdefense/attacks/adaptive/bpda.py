"""BPDA, alone and with EOT, and the attack through the defence's own gradient.

BPDA takes the classifier's gradient at the defence's output for the image's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from dipdefense.arguments import choice
from dipdefense.attacks.adaptive.ascent import Rule
from dipdefense.attacks.adaptive.gradient_attack import GradientAttack
from dipdefense.attacks.adaptive.gradients import Backward, Estimator, through
from dipdefense.attacks.adaptive.task import Task


@dataclass(frozen=True, kw_only=True)
class BPDA(GradientAttack):
    """Through the defence, with the identity in the backward pass.

    See Athalye et al. 2018, section 4.1. Every step meets a fresh random sample of the defence. DiffHammer (Wang et al.
    2024) runs APGD for 50 steps with 3 restarts, which ``restarts=3`` is.

    Attributes:
        backward: "identity"; "own" for the defence's own gradient; "auto" takes the identity where the defence keeps
            the image's shape, and otherwise its own gradient (:class:`dipdefense.randomization.RandomResizePad`).

    Example:
        >>> from dipdefense.attacks.adaptive import Threat
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> images, labels = torch.rand(2, 3, 8, 8), torch.tensor([3, 7])
        >>> adversarial = BPDA(steps=5)(
        ...     torch.nn.Identity(), classifier, images, labels, threat=Threat(epsilon=8), seed=0
        ... )
        >>> f"{(adversarial - images).abs().max() * 255:.1f}"
        '8.0'
    """

    backward: Backward = "auto"

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        super().__post_init__()
        choice("backward", self.backward, get_args(Backward))

    def _estimator(self, task: Task) -> Estimator:
        return through(task, self.backward)


@dataclass(frozen=True, kw_only=True)
class OwnGradient(BPDA):
    """Through the defence and its own backward pass, which BPDA replaces.

    Raises:
        ValueError: at the first step; the defence's output has no gradient.
    """

    backward: Backward = "own"


@dataclass(frozen=True, kw_only=True)
class BPDAEOT(BPDA):
    """BPDA whose gradients are averaged over K random samples of the defence (EOT).

    See Athalye et al. 2018, section 4.2. The defaults are the budget of Lee & Kim 2023: PGD of 200 steps with 20
    samples each, and steps of 0.007 at ε = 8/255. The samples come from K calls: repeated rows would break defences
    that look at a batch.
    """

    steps: int = 200
    rule: Rule = "pgd"
    step_size: float | None = 0.007 * 255 / 8
    samples: int = 20
