"""Gradients of the defended model's loss, as an attacker can estimate them.

An estimator takes the loss to be increased, images, and a seed that fixes one random sample of the defence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from dipdefense.arguments import choice
from dipdefense.attacks.adaptive.losses import Objective
from dipdefense.attacks.adaptive.samples import sampled
from dipdefense.attacks.adaptive.task import Task
from dipdefense.reconstruct import Reconstruction

Backward = Literal["auto", "identity", "own"]


class Estimate(NamedTuple):
    """The gradient and the losses at some images.

    Attributes:
        gradient: (N, C, H, W), of the loss that is increased.
        loss: (N,), that loss.
        judged: (N,), the untargeted loss at the defence's output, by which iterates are compared.
    """

    gradient: Tensor
    loss: Tensor
    judged: Tensor


Estimator = Callable[[Objective, Tensor, int], Estimate]


@runtime_checkable
class HasTrajectory(Protocol):
    """A defence with intermediate outputs, such as :class:`dipdefense.DIPPurifier`."""

    iters: int

    def reconstruct(self, images: Tensor, *, budgets: Sequence[int]) -> Reconstruction:
        """The outputs at each of several budgets."""


def through(task: Task, backward: Backward) -> Estimator:
    """The gradient through the defence, or with the identity in its place (BPDA).

    See Athalye et al. 2018.

    Args:
        task: the defended model.
        backward: "identity"; "own" for the defence's own gradient; "auto" takes the identity where the defence's
            output has the image's shape, and otherwise its own gradient.

    Raises:
        ValueError: at the estimate; there is no identity between two shapes, or the output has no gradient.
    """
    choice("backward", backward, get_args(Backward))

    def estimate(objective: Objective, images: Tensor, seed: int) -> Estimate:
        variable = images.detach().requires_grad_()
        with sampled(seed, images.device):
            # A copy, since a defence may change its input in place.
            output = task.defence(images.detach().clone() if backward == "identity" else variable.clone())
            identical = output.shape == images.shape
            if backward == "identity" and not identical:
                raise ValueError(
                    f"the defence makes images of shape {tuple(output.shape)} from {tuple(images.shape)}, and there "
                    'is no identity between them; give backward="own" for its own gradient'
                )
            if backward != "own" and identical:
                variable = output = output.detach().requires_grad_()
            elif not output.requires_grad:
                raise ValueError(
                    "the defence's output has no gradient; use the identity (BPDA), a stand-in, or Square, which "
                    "needs none"
                )
            logits = task.logits(output)
        return estimated(logits, objective, variable)

    return estimate


def along_the_trajectory(task: Task, points: int) -> Estimator:
    """The mean of the classifier's gradients at the intermediate outputs of one run.

    See Croce et al. 2022.

    Args:
        task: the defended model, whose defence has a trajectory.
        points: evenly spaced outputs; the last is the defence's own.
    """
    assert isinstance(task.defence, HasTrajectory)  # checked with the task
    defence = task.defence
    budgets = sorted({max(1, round(defence.iters * point / points)) for point in range(1, points + 1)})

    def estimate(objective: Objective, images: Tensor, seed: int) -> Estimate:
        with sampled(seed, images.device):
            outputs = defence.reconstruct(images.detach(), budgets=budgets).images
            parts = []
            for output in outputs.unbind():
                variable = output.detach().requires_grad_()
                parts.append(estimated(task.logits(variable), objective, variable))
        return mean(parts)._replace(judged=parts[-1].judged)

    return estimate


def mean(parts: Sequence[Estimate]) -> Estimate:
    """The mean over several random samples (EOT, Athalye et al. 2018) or outputs."""
    return Estimate(*(torch.stack(values).mean(dim=0) for values in zip(*parts, strict=True)))


def estimated(logits: Tensor, objective: Objective, variable: Tensor) -> Estimate:
    """The loss of ``logits`` and its gradient with respect to ``variable``.

    The logits were computed from the variable. Where a reconstruction diverged, nothing is known: the gradient is zero
    and the loss the least there is.
    """
    losses = objective(logits)
    (gradient,) = torch.autograd.grad(losses.sum(), variable)
    judged = objective.untargeted(logits.detach())
    return Estimate(
        gradient.nan_to_num(0, 0, 0), *(loss.detach().nan_to_num(nan=-torch.inf) for loss in (losses, judged))
    )


def check_trajectory(defence: nn.Module) -> None:
    """Refuse a defence without intermediate outputs.

    Raises:
        ValueError: it has no trajectory.
    """
    if not isinstance(defence, HasTrajectory):
        raise ValueError(
            f"{type(defence).__name__} has no trajectory: this attack needs a defence that records its intermediate "
            'outputs, as DIPPurifier does; use "bpda" or "bpda-eot"'
        )
