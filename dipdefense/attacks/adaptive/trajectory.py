"""Trajectory BPDA: the mean of the gradients at intermediate outputs."""

from __future__ import annotations

from dataclasses import dataclass

from dipdefense.attacks.adaptive.gradient_attack import GradientAttack
from dipdefense.attacks.adaptive.gradients import Estimator, along_the_trajectory, check_trajectory
from dipdefense.attacks.adaptive.task import Task, check_counts


@dataclass(frozen=True, kw_only=True)
class Trajectory(GradientAttack):
    """BPDA with the mean of the gradients at the purifier's intermediate outputs.

    It is the strongest attack of Croce et al. 2022, who run APGD for 1,000 steps. One run of the purifier gives all
    outputs. The loss that is increased is their mean too; iterates are compared by the last output's, the one that is
    classified.

    Attributes:
        points: intermediate outputs, evenly spaced over the purifier's iterations; the last is its own output.

    Raises:
        ValueError: at the call, the defence has no trajectory; :class:`dipdefense.DIPPurifier` has one, and so has any
            module with its ``iters`` and ``reconstruct``.
    """

    steps: int = 1000
    points: int = 10

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        super().__post_init__()
        check_counts(points=self.points)

    def _check(self, task: Task, classes: int) -> None:
        super()._check(task, classes)
        check_trajectory(task.defence)

    def _estimator(self, task: Task) -> Estimator:
        return along_the_trajectory(task, self.points)
