"""Adapter from other libraries' models to classifiers of images in [0, 1].

These return (N, classes) logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dipdefense.checks import check_logits


class Logits(nn.Module):
    """Another library's model as a classifier of images in [0, 1].

    The model may expect normalised images, and may return more than logits. The classifier normalises the images, calls
    the model, and takes the logits from its output: the tensor itself, the attribute ``.logits`` (Hugging Face,
    torchvision's Inception in training mode), the entry "logits" of a dict, or the first item of a tuple or list. The
    model's mode and parameters do not change.

    Args:
        network: any model whose first argument is a batch of normalised images.
        mean: subtracted from each channel, in the images' units: 0.485, not 123.675. One number applies to all.
        std: the divisor of each channel, likewise.

    Raises:
        TypeError: an argument has the wrong type; at the call, the output has no logits.
        ValueError: ``mean`` or ``std`` is out of range; at the call, the logits are not an (N, classes) tensor.

    Shape:
        (N, C, H, W) floats in [0, 1] to (N, classes) logits; gradients flow to the images.

    Example:
        >>> class Model(nn.Linear):
        ...     def forward(self, pixel_values):
        ...         return {"logits": super().forward(pixel_values.flatten(1))}
        >>> classifier = Logits(Model(3 * 8 * 8, 10), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        >>> classifier(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, mean: Iterable[float] = (0.0,), std: Iterable[float] = (1.0,)) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        means, stds = _numbers("mean", mean), _numbers("std", std)
        if len({len(means), len(stds)} - {1}) > 1:
            raise ValueError(
                f"mean and std must have one number for each channel, got {len(means)} and {len(stds)} numbers"
            )
        if not all(number > 0 for number in stds):
            raise ValueError(f"std must be positive, got {stds}")
        self.network = network
        self.register_buffer("mean", torch.tensor(means).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(stds).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1]."""
        output = self.network((images - self.mean) / self.std)
        logits = _unwrap(output)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"{type(self.network).__name__} must return logits, bare, as .logits, under 'logits' or as the first "
                f"item, got {type(output).__name__}; load the model with its classification head"
            )
        return check_logits(logits, len(images))


def _unwrap(output: object) -> object:
    """The logits from where common libraries keep them; any other output unchanged."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        return output.get("logits")
    if isinstance(output, tuple | list) and output:
        return _unwrap(output[0])
    return output


def _numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    """The numbers as a tuple, checked: one for each channel, in [0, 1]."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be one number for each channel, such as (0.5, 0.5, 0.5), got {values!r}"
        ) from error
    if not numbers or not all(0 <= number <= 1 for number in numbers):
        raise ValueError(
            f"{name} must lie in [0, 1] as the images do, got {numbers}; divide by 255 numbers that are "
            "meant for uint8 images"
        )
    return numbers
