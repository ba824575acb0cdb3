"""The base of the gradient-based attacks.

It puts hyperparameters, restarts, targets and resuming around one ascent.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from dipdefense.arguments import choice, flag, real
from dipdefense.attacks.adaptive.ascent import Ascent, Rule, ascend
from dipdefense.attacks.adaptive.gradients import Estimate, Estimator, mean
from dipdefense.attacks.adaptive.losses import LossName, Objective
from dipdefense.attacks.adaptive.samples import derived
from dipdefense.attacks.adaptive.task import AdaptiveAttack, Task, check_counts
from dipdefense.attacks.adaptive.threat import Ball
from dipdefense.checks import check_seed


@dataclass(frozen=True, kw_only=True)
class GradientAttack(AdaptiveAttack):
    """Ascent of a loss by estimates of its gradient, from random images in the ball.

    Every estimate takes fresh random samples of the defence, unless its sample is known. Of all iterates of all
    restarts the one whose loss is greatest is returned, where a loss is the mean over the samples that the estimate
    took of this iterate. With few samples of a random defence that favours lucky ones: judge the result on fresh
    samples.

    Attributes:
        steps: gradient steps of a restart.
        rule: "pgd" or "apgd" (:mod:`dipdefense.attacks.adaptive.ascent`).
        step_size: as a part of ε. None is APGD's 2, halved as it goes, and PGD's 2.5 / steps (Madry et al. 2018).
        loss: "ce" or "dlr" (Croce & Hein 2020).
        targeted: towards wrong classes. Restart r goes for the r-th most likely one of the clean images, by the
            classifier alone, as AutoAttack does.
        restarts: random starts.
        samples: random samples of the defence that an estimate averages over, K of EOT.
        known: the seed of the one sample that an attacker knows and every estimate takes
            (:func:`dipdefense.attacks.adaptive.samples.purified` replays it on the same batch), or None.

    Raises:
        TypeError, ValueError: one of them is outside its range.
    """

    steps: int = 50
    rule: Rule = "apgd"
    step_size: float | None = None
    loss: LossName = "ce"
    targeted: bool = False
    restarts: int = 1
    samples: int = 1
    known: int | None = None

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        check_counts(steps=self.steps, restarts=self.restarts, samples=self.samples)
        choice("rule", self.rule, get_args(Rule))
        choice("loss", self.loss, get_args(LossName))
        flag("targeted", self.targeted)
        if self.known is not None:
            check_seed(self.known)
            if self.samples != 1:
                raise ValueError(f"samples must be 1 where the sample is known, got samples={self.samples}")
        if self.step_size is not None:
            expected = "a positive number of at most 2, a part of ε, or None"
            real("step_size", self.step_size, expected=expected, holds=lambda x: 0 < x <= 2)

    def purifications(self) -> int:
        """How often the defence is run on each image."""
        return self.restarts * (self.steps + 1) * self.samples

    @abc.abstractmethod
    def _estimator(self, task: Task) -> Estimator:
        """The gradient that this attacker follows."""

    def _ball(self, task: Task) -> Ball:
        return task.ball

    def _sample_seeds(self, task: Task, restart: int, step: int) -> list[int]:
        if self.known is not None:
            return [self.known]
        return [derived(task.seed, restart, step, sample) for sample in range(self.samples)]

    def _check(self, task: Task, classes: int) -> None:  # noqa: ARG002
        least = 4 if self.targeted else 3
        if self.loss == "dlr" and classes < least:
            raise ValueError(f'loss="dlr" needs a classifier of {least} classes or more, got {classes}; use loss="ce"')
        if self.targeted and self.restarts >= classes:
            raise ValueError(
                f"restarts must be fewer than the classes, as each has its target, got {self.restarts} restarts and "
                f"{classes} classes"
            )

    def _attack(self, task: Task) -> Tensor:
        worst = task.clean.new_full((len(task.clean),), -torch.inf)
        saved: dict[str, Any] = {"restart": 0, "kept": task.clean, "kept_loss": worst, "state": None}
        saved.update(task.progress.load())
        estimator = self._estimator(task) if saved["restart"] < self.restarts else None
        for restart in range(saved["restart"], self.restarts):
            assert estimator is not None
            for ascent in self._ascent(task, estimator, restart, saved["state"]):
                saved["state"] = ascent.state()
                task.progress.save(saved)
            better = ascent.kept_loss > saved["kept_loss"]
            saved = {
                "restart": restart + 1,
                "kept": torch.where(better[:, None, None, None], ascent.kept, saved["kept"]),
                "kept_loss": ascent.kept_loss.maximum(saved["kept_loss"]),
                "state": None,
            }
            task.progress.save(saved, at_once=True)
        kept: Tensor = saved["kept"]
        return kept

    def _ascent(self, task: Task, estimator: Estimator, restart: int, state: dict[str, Any] | None) -> Iterator[Ascent]:
        ball = self._ball(task)
        objective = Objective(task.labels, self.loss, self._targets(task, restart))

        def estimate(images: Tensor, step: int) -> Estimate:
            # A call a sample: repeated rows would meet other samples, and defences that look at the whole batch.
            return mean([estimator(objective, images, seed) for seed in self._sample_seeds(task, restart, step)])

        def start() -> Tensor:
            return ball.start(torch.Generator().manual_seed(derived(task.seed, restart, "start")))

        part = self.step_size or (2.0 if self.rule == "apgd" else 2.5 / self.steps)
        size = part * ball.threat.radius
        return ascend(estimate, ball, start, rule=self.rule, steps=self.steps, size=size, state=state)

    def _targets(self, task: Task, restart: int) -> Tensor | None:
        if not self.targeted:
            return None
        with torch.no_grad():
            logits = task.logits(task.clean)
        wrong = logits.scatter(1, task.labels[:, None], -torch.inf)
        return wrong.argsort(dim=1, descending=True)[:, restart]
