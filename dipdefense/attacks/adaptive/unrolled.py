"""The surrogate that is a shorter purifier: gradients that really flow through its iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dipdefense.attacks.adaptive.gradient_attack import GradientAttack
from dipdefense.attacks.adaptive.gradients import Estimate, Estimator, estimated
from dipdefense.attacks.adaptive.losses import Objective
from dipdefense.attacks.adaptive.samples import sampled
from dipdefense.attacks.adaptive.task import Task, check_counts
from dipdefense.attacks.adaptive.unroll import unrolled
from dipdefense.checks import resolve_seeds
from dipdefense.purifier import DIPPurifier


@dataclass(frozen=True, kw_only=True)
class Unrolled(GradientAttack):
    """Ascent through the first iterations of a :class:`dipdefense.DIPPurifier`, to be tested on the full purifier.

    The gradient is that of the reconstruction after ``iterations`` iterations, and no estimate: it passes through every
    update of every network (:mod:`dipdefense.attacks.adaptive.unroll`). Its seeds are those that the purifier would
    have. Iterates are compared by the loss at the short reconstruction.

    Attributes:
        iterations: unrolled; 20 to 100. One gradient costs about as much as eight times as many iterations.

    Raises:
        TypeError: at the call, the defence is no DIPPurifier.
    """

    kind: ClassVar[str] = "unrolled"

    iterations: int = 50

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        super().__post_init__()
        check_counts(iterations=self.iterations)

    def purifications(self) -> int:
        """None to the end: the defence's first iterations are run instead."""
        return 0

    def _check(self, task: Task, classes: int) -> None:
        super()._check(task, classes)
        if not isinstance(task.defence, DIPPurifier):
            raise TypeError(
                f"defence must be a DIPPurifier, whose iterations can be unrolled, got {type(task.defence).__name__}; "
                'use "bpda-eot" or "stand-in"'
            )

    def _estimator(self, task: Task) -> Estimator:
        defence = task.defence
        assert isinstance(defence, DIPPurifier)  # checked with the task
        iterations = min(self.iterations, defence.iters)

        def estimate(objective: Objective, images: Tensor, seed: int) -> Estimate:
            variable = images.detach().requires_grad_()
            with sampled(seed, images.device):
                seeds = resolve_seeds(defence.seed, len(images))
                output = unrolled(variable, iterations=iterations, config=defence.config, seeds=seeds)
                logits = task.logits(output)
            return estimated(logits, objective, variable)

        return estimate
