"""Adam over the networks' parameters.

Its rounding is the same for an image alone as in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dipdefense.config import DIPConfig

# Elements of the widest vector register: 64 bytes of fp32.
_VECTOR = 16

Moments = dict[str, Tensor]
"""Adam's state of one parameter: its moments, and the iterations done."""


def adam(parameters: Sequence[Aligned], config: DIPConfig, *, capturable: bool = False) -> torch.optim.Optimizer:
    """The optimiser of all networks' parameters."""
    made = torch.optim.Adam(
        [parameter.values for parameter in parameters],
        lr=config.learning_rate, betas=config.betas, eps=config.adam_eps, fused=True, capturable=capturable,
    )  # fmt: skip
    # torch warns of steps outside a graph, which a capture's warm-up is made of.
    made._warned_capturable_if_run_uncaptured = True
    return made


class Aligned:
    """A parameter padded to whole vectors, as the optimiser updates it.

    On a CPU fused Adam treats the last elements, which do not fill a vector, one by one and rounds them differently.
    Without padding it would depend on the batch which image's elements these are.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self.values: Tensor = parameter
        self._gradient: Tensor | None = None
        count = parameter.numel()
        if parameter.is_cuda or count % _VECTOR == 0:
            return
        padded = parameter.new_zeros(-(-count // _VECTOR) * _VECTOR)
        padded[:count] = parameter.detach().flatten()
        parameter.data = padded[:count].view_as(parameter)
        padded.grad = torch.zeros_like(padded)
        self.values, self._gradient = padded, padded.grad[:count].view_as(parameter)

    def take_gradient(self) -> None:
        """Hand the parameter's gradient on to the optimiser."""
        if self._gradient is not None and self._parameter.grad is not None:
            self._gradient.copy_(self._parameter.grad)

    def moments(self, optimiser: torch.optim.Optimizer, rows: Tensor) -> Moments:
        """The optimiser's state of some networks, without padding."""
        shape, count = self._parameter.shape, self._parameter.numel()
        return {
            name: value.clone() if value.ndim == 0 else value.flatten()[:count].view(shape)[rows]
            for name, value in optimiser.state[self.values].items()
        }

    def take_moments(self, optimiser: torch.optim.Optimizer, moments: Moments) -> None:
        """Give the optimiser this state, padded as the parameter is."""
        state = optimiser.state[self.values]
        for name, value in moments.items():
            state[name] = value
            if value.ndim > 0:
                state[name] = torch.zeros_like(self.values)
                state[name].view(-1)[: value.numel()] = value.flatten()
