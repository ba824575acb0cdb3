"""The surrogate that is a shorter purifier, with its iterations' true gradients."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from dipdefense.arguments import real
from dipdefense.attacks.adaptive.gradient_attack import GradientAttack
from dipdefense.attacks.adaptive.gradients import Estimate, Estimator, estimated
from dipdefense.attacks.adaptive.losses import Objective
from dipdefense.attacks.adaptive.samples import sampled
from dipdefense.attacks.adaptive.task import Task, check_counts
from dipdefense.attacks.adaptive.unroll import unrolled
from dipdefense.attacks.l2 import unit
from dipdefense.checks import resolve_seeds
from dipdefense.purifier import DIPPurifier


@dataclass(frozen=True, kw_only=True)
class Unrolled(GradientAttack):
    """Ascent through the first iterations of a :class:`dipdefense.DIPPurifier`.

    The gradient is that of the reconstruction after ``iterations`` iterations, and no estimate: it passes through every
    update of every network (:mod:`dipdefense.attacks.adaptive.unroll`). Its seeds are those that the purifier would
    have. Iterates are compared by the loss at the short reconstruction; the images are then tested on the full
    purifier.

    The fit is chaotic: the exact gradients of two seeds have hardly a direction in common, and their norms differ by
    orders of magnitude. Each sample's gradient is therefore brought to norm 1 before the mean, and the
    surrogate's Adam has a larger ε than the purifier's, which makes its updates smoother than signs.

    Attributes:
        iterations: unrolled; 20 to 100. One gradient costs about as much as eight times as many iterations.
        adam_eps: ε of the surrogate's Adam; None is the purifier's own, for the exact gradient.

    Raises:
        TypeError: at the call, the defence is no DIPPurifier.
        ValueError: at the call, its network is a variant of the original one.
    """

    iterations: int = 50
    adam_eps: float | None = 1e-3

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        super().__post_init__()
        check_counts(iterations=self.iterations)
        if self.adam_eps is not None:
            real("adam_eps", self.adam_eps, expected="a positive number, or None", holds=lambda x: x > 0)

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
        if variants := task.defence.config.variants():
            raise ValueError(
                f"only the original network can be unrolled, and the defence's has {', '.join(variants)}; "
                'use "bpda-eot" or "stand-in"'
            )

    def _estimator(self, task: Task) -> Estimator:
        defence = task.defence
        assert isinstance(defence, DIPPurifier)  # checked with the task
        iterations, config = min(self.iterations, defence.iters), defence.config
        if self.adam_eps is not None:
            config = dataclasses.replace(config, adam_eps=self.adam_eps)

        def estimate(objective: Objective, images: Tensor, seed: int) -> Estimate:
            variable = images.detach().requires_grad_()
            with sampled(seed, images.device):
                seeds = resolve_seeds(defence.seed, len(images))
                output = unrolled(variable, iterations=iterations, config=config, seeds=seeds)
                logits = task.logits(output)
            found = estimated(logits, objective, variable)
            return found._replace(gradient=unit(found.gradient))

        return estimate
