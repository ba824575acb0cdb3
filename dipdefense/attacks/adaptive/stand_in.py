"""The surrogate that is a small filter, fitted to the defence's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipdefense.arguments import real
from dipdefense.attacks.adaptive.gradient_attack import GradientAttack
from dipdefense.attacks.adaptive.gradients import Estimate, Estimator, estimated
from dipdefense.attacks.adaptive.losses import Objective
from dipdefense.attacks.adaptive.samples import derived, purified, sampled
from dipdefense.attacks.adaptive.task import Task, check_counts


@dataclass(frozen=True, kw_only=True)
class StandIn(GradientAttack):
    """Ascent through a small filter, fitted to the defence's inputs and outputs.

    The filter is convolutional. The inputs are the clean images and random ones from the ball around them, each
    purified by a random sample of its own. Any defence that keeps the image's shape will do. Iterates are compared by
    the loss at the filter's output; the images are then tested on the defence. Papernot et al. 2017 put such a
    substitute in a classifier's place; here it stands for the defence alone.

    Attributes:
        pairs: inputs an image, each purified once.
        width: channels of the filter's two hidden layers.
        fits: steps of Adam that fit it.
        rate: their learning rate.

    Raises:
        ValueError: at the call, the defence changes the image's shape.
    """

    pairs: int = 4
    width: int = 24
    fits: int = 300
    rate: float = 0.003

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        super().__post_init__()
        check_counts(pairs=self.pairs, width=self.width, fits=self.fits)
        real("rate", self.rate, expected="a positive number of at most 1", holds=lambda x: 0 < x <= 1)

    def purifications(self) -> int:
        """How often the defence is run on each image: for the pairs alone."""
        return self.pairs

    def _estimator(self, task: Task) -> Estimator:
        inputs, outputs = self._pairs(task)
        with sampled(derived(task.seed, "weights"), task.clean.device):
            stand_in = fitted(inputs, outputs, width=self.width, fits=self.fits, rate=self.rate)

        def estimate(objective: Objective, images: Tensor, seed: int) -> Estimate:
            variable = images.detach().requires_grad_()
            with sampled(seed, images.device):
                logits = task.logits(stand_in(variable))
            return estimated(logits, objective, variable)

        return estimate

    def _pairs(self, task: Task) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of the defence, (pairs · N, C, H, W) each."""
        inputs, outputs = [], []
        for number in range(self.pairs):
            generator = torch.Generator().manual_seed(derived(task.seed, "pair", number))
            inputs.append(task.ball.start(generator) if number else task.clean)
            outputs.append(purified(task.defence, inputs[-1], seed=derived(task.seed, "pair", number)))
            if outputs[-1].shape != inputs[-1].shape:
                raise ValueError(
                    f"the defence makes images of shape {tuple(outputs[-1].shape)} from {tuple(inputs[-1].shape)}, "
                    'and a stand-in keeps the shape; use "bpda-eot"'
                )
        return torch.cat(inputs), torch.cat(outputs)


class Filter(nn.Module):
    """Three convolutions whose output is added to the image; at first that is zero.

    Args:
        channels: of the images.
        width: of the hidden layers.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        last = _convolution(width, channels, 3)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(
            _convolution(channels, width, 5), nn.SiLU(), _convolution(width, width, 3), nn.SiLU(), last
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return images + self.layers(images)  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect")


def fitted(inputs: Tensor, outputs: Tensor, *, width: int, fits: int, rate: float) -> nn.Module:
    """A `Filter` with the least squared error on these pairs that Adam finds.

    Its initial weights are random. Pairs that are not finite, as where a reconstruction diverged, are left out.
    """
    whole = outputs.flatten(1).isfinite().all(dim=1)
    inputs, outputs = inputs[whole], outputs[whole]
    stand_in = Filter(inputs.shape[1], width).to(inputs)
    optimiser = torch.optim.Adam(stand_in.parameters(), lr=rate)
    for _ in range(fits if len(inputs) else 0):
        optimiser.zero_grad()
        (stand_in(inputs) - outputs).square().mean().backward()
        optimiser.step()
    return stand_in.requires_grad_(False)
