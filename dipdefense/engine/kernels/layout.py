"""The layout of a network's parameters in one row, and the conversion both ways.

A convolution's weights are (k·k, in, out) there, as the kernels multiply them. Adam's pass over the rows can then write
the operands too, and no iteration rearranges anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# Parameters start at multiples of 16 elements: 32 bytes in bf16, so that loads of 16 bytes are aligned.
_ALIGNMENT = 16


class Slot(NamedTuple):
    """One parameter's place in a row and its shape there."""

    offset: int
    shape: tuple[int, ...]


class Layout(NamedTuple):
    """The parameters' places, by their names in ``SkipNets``, and the row's length."""

    slots: dict[str, Slot]
    length: int

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> Layout:
        """The layout of the batched network's ``dict(named_parameters())``."""
        slots, offset = {}, 0
        for name, parameter in parameters.items():
            shape = tuple(_to_row(name, parameter).shape[1:])
            slots[name] = Slot(offset, shape)
            offset += -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
        return cls(slots, offset)

    def view(self, rows: Tensor, name: str) -> Tensor:
        """One parameter of all images, (N, *shape), in the rows (N, length)."""
        offset, shape = self.slots[name]
        return rows[:, offset : offset + math.prod(shape)].view(len(rows), *shape)

    def pack(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The batched network's parameters to rows (N, length), zero in the gaps."""
        some = next(iter(parameters.values()))
        rows = torch.zeros(len(some), self.length, dtype=torch.float32, device=some.device)
        for name, parameter in parameters.items():
            self.view(rows, name).copy_(_to_row(name, parameter.detach()))
        return rows

    def unpack(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows to the batched network's layouts; the way back from :meth:`pack`."""
        return {name: _from_row(name, self.view(rows, name)) for name in self.slots}


def _is_transposed(name: str) -> bool:
    return name.startswith("up") and not name.startswith("up_skip")


def _to_row(name: str, parameter: Tensor) -> Tensor:
    if parameter.ndim < 5:
        return parameter
    if _is_transposed(name):
        # (N, in, k along the width, out, k along the height); transposed convolution mirrors the taps.
        return parameter.permute(0, 4, 2, 1, 3).flip(1, 2).flatten(1, 2)
    return parameter.permute(0, 3, 4, 2, 1).flatten(1, 2)


def _from_row(name: str, value: Tensor) -> Tensor:
    if value.ndim < 4:
        return value
    kernel = math.isqrt(value.shape[1])
    taps = value.reshape(len(value), kernel, kernel, *value.shape[2:])
    return taps.flip(1, 2).permute(0, 3, 2, 4, 1) if _is_transposed(name) else taps.permute(0, 4, 3, 1, 2)
