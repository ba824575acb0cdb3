"""Projected gradient ascent on all images at once, for gradient-based attacks.

Two rules of stepping, both on an estimate of the gradient at every iterate:

- "pgd": steps of one size, each followed by a projection (Madry et al. 2018);
- "apgd": momentum, and a step size that is halved for an image whose loss has stopped to rise, which then returns to
  its best iterate (Croce & Hein 2020, section 3; 0.75, 0.22 and so on are theirs).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dipdefense.attacks.adaptive.gradients import Estimate
from dipdefense.attacks.adaptive.threat import Ball

Rule = Literal["pgd", "apgd"]

_MOMENTUM = 0.75
_RISING = 0.75
_FIRST, _SHORTER, _LEAST = 0.22, 0.03, 0.06


@dataclass
class Ascent:
    """The state between two steps, of N images; all of it goes into a checkpoint.

    Attributes:
        taken: steps done.
        images: the iterates, (N, C, H, W).
        previous: the iterates one step earlier.
        gradient: at the iterates, or at the best ones for images that returned there.
        sizes: (N, 1, 1, 1) step sizes on the scale of images in [0, 1].
        losses: (steps + 1, N), the increased loss of every iterate.
        best, best_gradient, best_loss: the iterate of the greatest increased loss, where APGD returns to.
        kept, kept_loss: the iterate of the greatest judged loss: the attack's result.
        halved: (N,) whether the step size was halved at the last check.
        loss_at_check: (N,) the best loss at the last check.
        next_check: the step after which the sizes are checked again.
        window: steps between the last check and the next.
    """

    taken: int
    images: Tensor
    previous: Tensor
    gradient: Tensor
    sizes: Tensor
    losses: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    kept: Tensor
    kept_loss: Tensor
    halved: Tensor
    loss_at_check: Tensor
    next_check: int
    window: int

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def begun(cls, images: Tensor, estimate: Estimate, *, steps: int, size: float) -> Ascent:
        """Before the first step."""
        losses = images.new_zeros(steps + 1, len(images))
        losses[0] = estimate.loss
        window = max(int(_FIRST * steps), 1)
        return cls(
            taken=0, images=images, previous=images, gradient=estimate.gradient,
            sizes=images.new_full((len(images), 1, 1, 1), size), losses=losses,
            best=images, best_gradient=estimate.gradient, best_loss=estimate.loss,
            kept=images, kept_loss=estimate.judged,
            halved=torch.ones(len(images), dtype=torch.bool, device=images.device), loss_at_check=estimate.loss,
            next_check=window, window=window,
        )  # fmt: skip

    def move(self, ball: Ball, rule: Rule) -> None:
        """One step to the next iterates."""
        ahead = ball.project(self.images + self.sizes * ball.direction(self.gradient))
        if rule == "apgd" and self.taken:
            drift = self.images - self.previous
            ahead = ball.project(self.images + _MOMENTUM * (ahead - self.images) + (1 - _MOMENTUM) * drift)
        self.previous, self.images = self.images, ahead
        self.taken += 1

    def record(self, estimate: Estimate) -> None:
        """Take in what is known of the new iterates."""
        self.gradient = estimate.gradient
        self.losses[self.taken] = estimate.loss
        better = estimate.loss > self.best_loss
        self.best = _where(better, self.images, self.best)
        self.best_gradient = _where(better, self.gradient, self.best_gradient)
        self.best_loss = torch.where(better, estimate.loss, self.best_loss)
        better = estimate.judged > self.kept_loss
        self.kept = _where(better, self.images, self.kept)
        self.kept_loss = torch.where(better, estimate.judged, self.kept_loss)

    def adapt(self) -> None:
        """APGD's check of the step sizes, where one is due."""
        if self.taken != self.next_check:
            return
        past = self.losses[self.taken - self.window : self.taken + 1]
        rises = (past[1:] > past[:-1]).sum(dim=0)
        stalled = ~self.halved & (self.loss_at_check >= self.best_loss)
        self.halved = (rises <= _RISING * self.window) | stalled
        self.loss_at_check = self.best_loss
        self.sizes = torch.where(self.halved[:, None, None, None], self.sizes / 2, self.sizes)
        self.images = _where(self.halved, self.best, self.images)
        self.gradient = _where(self.halved, self.best_gradient, self.gradient)
        steps = len(self.losses) - 1
        self.window = max(self.window - max(int(_SHORTER * steps), 1), max(int(_LEAST * steps), 1))
        self.next_check += self.window


def ascend(
    estimate: Callable[[Tensor, int], Estimate],
    ball: Ball,
    start: Callable[[], Tensor],
    *,
    rule: Rule,
    steps: int,
    size: float,
    state: Mapping[str, Any] | None = None,
) -> Iterator[Ascent]:
    """The ascent before its first step and after every one.

    The result is ``kept``: of all iterates the one with the greatest judged loss, which an estimate averages over the
    random samples that it saw of that very iterate. An image that is misclassified already is pushed further.

    Args:
        estimate: of images and the number of steps taken.
        ball: what the images are projected on.
        start: makes the first iterate, where there is no state.
        rule: "pgd" or "apgd".
        steps: of all.
        size: of the steps, for APGD of the first ones.
        state: of an ascent that was interrupted.
    """
    if state:
        ascent = Ascent(**state)
    else:
        images = start()
        ascent = Ascent.begun(images, estimate(images, 0), steps=steps, size=size)
    yield ascent
    while ascent.taken < steps:
        ascent.move(ball, rule)
        ascent.record(estimate(ascent.images, ascent.taken))
        if rule == "apgd":
            ascent.adapt()
        yield ascent


def _where(chosen: Tensor, images: Tensor, others: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], images, others)
