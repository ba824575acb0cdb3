"""Arguments of a reconstruction, checked before any work: each error says what was expected and what came."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dipdefense.config import Backend, DIPConfig

Precision = Literal["auto", "fp32", "bf16"]
Seed = int | Sequence[int] | None

# An image that was normalised and denormalised again misses [0, 1] by rounding; that is no reason to refuse it.
_ROUNDING = 1e-4

# Triton's kernels multiply in bf16.
_TRITON_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Request:
    """A reconstruction that was asked for and checked; nothing on the way checks or repeats its arguments again.

    Attributes:
        images: (N, C, H, W) floats in [0, 1].
        budgets: iteration counts to record, ascending.
        config: the method's numbers.
        seeds: one an image.
        operands: dtype of the convolutions' operands.
        backend: one that runs on the images' device; "auto" only on an NVIDIA GPU, where there is a choice.
    """

    images: Tensor
    budgets: tuple[int, ...]
    config: DIPConfig
    seeds: tuple[int, ...]
    operands: torch.dtype
    backend: Backend

    def chunk(self, start: int, stop: int) -> Request:
        """The same for some of the images."""
        return dataclasses.replace(self, images=self.images[start:stop], seeds=self.seeds[start:stop])


def check_request(
    images: Tensor,
    *,
    budgets: Sequence[int],
    config: DIPConfig | None,
    seed: Seed,
    precision: Precision,
    backend: Backend,
) -> Request:
    """The one check of everything that a reconstruction takes; fresh seeds are drawn here where none are given.

    Raises:
        TypeError, ValueError: an argument is not as :func:`dipdefense.reconstruct` describes it.
    """
    config, budgets = check_config(config), check_budgets(budgets)
    check_images(images, config)
    operands = operand_dtype(precision, images.device)
    check_backend(backend, images.device)
    if backend == "auto" and (images.device.type != "cuda" or torch.version.cuda is None):
        backend = "torch"
    return Request(images, budgets, config, tuple(resolve_seeds(seed, len(images))), operands, backend)


def operand_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the convolutions' operands on this device.

    Raises:
        ValueError: ``precision`` is unknown, or the device has no bf16.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f'precision must be "auto", "fp32" or "bf16", got {precision!r}')
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise ValueError(f'{device} has no bf16 arithmetic; use precision="fp32" or "auto"')
    wants_bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda" and has_bf16)
    return torch.bfloat16 if wants_bf16 else torch.float32


def check_backend(backend: Backend, device: torch.device | None = None) -> None:
    """Refuse an unknown backend and, given a device, one that does not run there.

    Raises:
        ValueError: it does not; the message says what is missing.
    """
    if backend not in get_args(Backend):
        raise ValueError(f'backend must be "auto", "torch", "cudagraphs" or "triton", got {backend!r}')
    if device is None or backend in ("auto", "torch") or (backend == "triton" and triton_interpreted()):
        return
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        raise ValueError(
            'backend="triton" needs Triton, which is not installed; install it (pip install triton) or use '
            'backend="torch"'
        )
    if device.type != "cuda" or torch.version.cuda is None:
        raise ValueError(
            f'backend="{backend}" needs the images on an NVIDIA GPU, got images on {device}; move them there '
            '(images.to("cuda")) or use backend="torch"'
        )
    if backend == "triton" and (capability := torch.cuda.get_device_capability(device)) < _TRITON_CAPABILITY:
        raise ValueError(
            f'backend="triton" needs a GPU of compute capability {".".join(map(str, _TRITON_CAPABILITY))} or later, '
            f'and {device} has {".".join(map(str, capability))}; use backend="torch"'
        )


def triton_interpreted() -> bool:
    """Whether Triton was asked to interpret its kernels: on any device, but so slowly that it serves checks alone."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_config(config: DIPConfig | None) -> DIPConfig:
    """The configuration, or the paper's for None.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(config, DIPConfig | None):
        raise TypeError(f"config must be a DIPConfig such as DIPConfig.compact(), or None, got {config!r}")
    return config or DIPConfig()


def check_budgets(budgets: Sequence[int]) -> tuple[int, ...]:
    """The budgets as an ascending tuple.

    Raises:
        ValueError: there are none, one is no positive integer, or they do not ascend.
    """
    budgets = tuple(budgets)
    if not budgets:
        raise ValueError("budgets must name at least one iteration count, such as (500, 750, 1000); got none")
    if any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in budgets):
        raise ValueError(f"budgets must be integers of at least 1, got {budgets}")
    if list(budgets) != sorted(set(budgets)):
        raise ValueError(f"budgets must ascend and name no count twice, got {budgets}")
    return budgets


def check_images(images: Tensor, config: DIPConfig | None = None) -> None:
    """Refuse anything that is no batch of images in [0, 1] (and, given a configuration, large enough for it).

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: wrong rank, too small, not finite, or outside [0, 1] by more than rounding (1e-4).
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.ndim != 4:
        hint = "; add a batch axis with images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images must have shape (batch, channels, height, width), got {tuple(images.shape)}{hint}")
    if not images.is_floating_point():
        hint = "; divide uint8 images by 255" if images.dtype == torch.uint8 else ""
        raise TypeError(f"images must be floating point in [0, 1], got {images.dtype}{hint}")
    if images.shape[1] == 0:
        raise ValueError(f"images must have at least one channel, got shape {tuple(images.shape)}")
    if config is not None:
        config.scales_for(*images.shape[2:])
    if images.numel() == 0:
        return
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not torch.isfinite(images).all():
        bad = (~images.detach().flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"images must be finite, but NaN or infinity is in the images at {bad}")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        hint = "uint8 values? divide by 255" if high > 2.9 and low >= 0 else "already normalised? undo mean and std"
        raise ValueError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g} ({hint} first)")


def check_logits(logits: object, count: int) -> Tensor:
    """A classifier's output for this many images, refused unless it is an (N, classes) tensor of logits.

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: another shape, or fewer than two classes.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"classifier must return an (N, classes) tensor of logits, got {type(logits).__name__}; give "
            "dipdefense.classifiers.Logits(classifier), which takes the logits out of what other libraries return"
        )
    if not logits.is_floating_point():
        raise TypeError(
            f"classifier must return an (N, classes) tensor of logits, got one of {logits.dtype}; give a classifier "
            "that returns scores, not predicted classes"
        )
    if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] < 2:
        raise ValueError(
            f"classifier must return (N, classes) logits of two classes or more, got {tuple(logits.shape)} for "
            f"N = {count}"
        )
    return logits


def check_seed(seed: Seed) -> None:
    """Refuse what is no seed.

    Raises:
        TypeError: not an integer, a sequence of integers or None.
        ValueError: a seed outside [0, 2**63).
    """
    seeds = [] if seed is None else seed if isinstance(seed, Sequence) else [seed]
    if isinstance(seed, str) or any(isinstance(s, bool) or not isinstance(s, int) for s in seeds):
        raise TypeError(f"seed must be an integer, one integer an image, or None, got {seed!r}")
    if any(not 0 <= s < 2**63 for s in seeds):
        raise ValueError(f"seeds must lie in [0, 2**63), got {seed!r}")


def resolve_seeds(seed: Seed, count: int) -> list[int]:
    """One seed an image: the integer for each of them, the given ones, or fresh ones from the default generator.

    Raises:
        TypeError, ValueError: no seeds, or a sequence of another length than the batch.
    """
    check_seed(seed)
    if seed is None:
        return torch.randint(2**63 - 1, (count,)).tolist()
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"seed must be one integer or one an image, got {len(seeds)} seeds for {count} images")
    return seeds
