"""One iteration in the kernels, over fixed buffers, for replay from a CUDA graph.

The noise's counter and Adam's bias corrections change at every iteration. Both are read by a count in the GPU's memory,
which the iteration itself increments.

Checked in Triton's interpreter on a CPU, where nothing is captured; not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dipdefense.config import DIPConfig
from dipdefense.engine.kernels.adam import bias_corrections
from dipdefense.engine.kernels.engine import Engine
from dipdefense.engine.kernels.noise import perturb


class Iteration:
    """One iteration of all images: noise, outputs, loss, gradients, update.

    Calling it does the next one.

    Args:
        parameters: the networks' initial weights, ``dict(SkipNets(...).named_parameters())``.
        fixed_noise: (N, input_channels, H, W) fp32.
        target: (N, C, H, W) fp32, the images.
        seeds: one per image, for the fresh noise.
        config: the method's numbers.
        scales: how often the networks halve the resolution.
        operands: dtype of activations and operands, bf16 or fp32.
        iterations: the most that it will be called for.
        outputs: (N, C, H, W) fp32, filled at every call with the networks' outputs, in [0, 1].
        losses: (N,) fp32, filled at every call with each output's mean squared error.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        fixed_noise: Tensor,
        target: Tensor,
        seeds: Sequence[int],
        *,
        config: DIPConfig,
        scales: int,
        operands: torch.dtype,
        iterations: int,
        outputs: Tensor,
        losses: Tensor,
    ) -> None:
        device = target.device
        self.engine = Engine(parameters, config, scales, operands)
        self._std = config.noise_std
        self._outputs, self._losses = outputs, losses
        self._fixed_noise, self._target = (x.permute(0, 2, 3, 1).contiguous() for x in (fixed_noise, target))
        self._noise = torch.empty_like(self._fixed_noise, dtype=operands)
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self._count = torch.ones((), dtype=torch.int64, device=device)
        self._corrections = bias_corrections(
            iterations, learning_rate=config.learning_rate, betas=config.betas, device=device
        )

    @torch.no_grad()
    def __call__(self) -> None:
        """Do the next iteration, without waiting for it."""
        perturb(self._fixed_noise, self._seeds, self._count, self._noise, std=self._std)
        output = self.engine.forward(self._noise)
        error = output - self._target
        self._outputs.copy_(output.permute(0, 3, 1, 2))
        self._losses.copy_(error.square().mean(dim=(1, 2, 3)))
        # Of the sum of the images' losses, so that no network's gradient depends on how many there are.
        self.engine.backward(error * (2 / error[0].numel()))
        self.engine.update(self._count, self._corrections)
        self._count += 1

    def fresh_noise(self) -> Tensor:
        """The last iteration's fresh noise: (N, input_channels, H, W) fp32.

        It is rounded as the input is, which is in the operands' dtype.
        """
        return (self._noise - self._fixed_noise).permute(0, 3, 1, 2)

    def weights(self, rows: Tensor) -> dict[str, Tensor]:
        """Copies of some networks' parameters, (M, ...), as ``SkipNets`` has them."""
        return self.engine.layout.unpack(self.engine.rows[rows])
