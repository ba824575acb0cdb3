"""Arguments of a reconstruction, checked before any work.

Each error says what was expected and what came.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dipdefense import processor
from dipdefense.arguments import choice, integer, several, shown
from dipdefense.batches import ROUNDING, check_shape, check_tensor, clipped, scale_advice
from dipdefense.config import MAX_ITERATIONS, Backend, DIPConfig
from dipdefense.native import loading
from dipdefense.native.iteration import fast_in_bf16
from dipdefense.reduction import reduced

Precision = Literal["auto", "fp32", "bf16"]
Seed = int | Sequence[int] | None
OutOfRange = Literal["raise", "clip"]

# More images than any batch that fits into memory has.
_MAX_SEEDS = 2**24
_SEED = "an integer in [0, 2**63), one per image, or None"

# NVIDIA's first with bf16 arithmetic, in which Triton's kernels multiply.
_BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Request:
    """A reconstruction's checked arguments.

    They are neither checked nor listed again further on.

    Attributes:
        images: (N, C, H, W) floats in [0, 1].
        budgets: iteration counts to record, ascending.
        config: the method's numbers.
        seeds: one per image.
        operands: dtype of the convolutions' operands.
        backend: one that runs on the images' device; "auto" only on an NVIDIA GPU, which has several.
    """

    images: Tensor
    budgets: tuple[int, ...]
    config: DIPConfig
    seeds: tuple[int, ...]
    operands: torch.dtype
    backend: Backend

    def chunk(self, start: int, stop: int) -> Request:
        """The request for the images from ``start`` to ``stop``."""
        return dataclasses.replace(self, images=self.images[start:stop], seeds=self.seeds[start:stop])

    def reduced(self) -> Request:
        """The request for the images at the size at which their networks are fitted."""
        if self.config.reduction == 1:
            return self
        images = reduced(self.images.detach(), self.config.fitted_size(*self.images.shape[2:]))
        return dataclasses.replace(self, images=images, config=dataclasses.replace(self.config, reduction=1))


def check_request(
    images: Tensor,
    *,
    budgets: Sequence[int],
    config: DIPConfig | None,
    seed: Seed,
    precision: Precision,
    backend: Backend,
    out_of_range: OutOfRange = "raise",
) -> Request:
    """Check a reconstruction's arguments, and sample seeds where none are given.

    Raises:
        TypeError, ValueError: an argument is not as :func:`dipdefense.reconstruct` describes it.
    """
    config, budgets = check_config(config), check_budgets(budgets)
    images = check_images(images, config, out_of_range=out_of_range)
    operands = operand_dtype(precision, images.device)
    check_backend(backend, images.device, config)
    if backend == "auto" and (images.device.type != "cuda" or torch.version.cuda is None):
        backend = "torch"
    return Request(images, budgets, config, tuple(resolve_seeds(seed, len(images))), operands, backend)


def operand_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the convolutions' operands on this device.

    Raises:
        ValueError: ``precision`` is unknown, or the device has no bf16.
    """
    choice("precision", precision, get_args(Precision))
    has_bf16 = device.type != "cuda" or _gpu_has_bf16(device)
    if precision == "bf16" and not has_bf16:
        raise ValueError(f'{device} has no bf16 arithmetic; use precision="fp32" or "auto"')
    is_faster = has_bf16 if device.type == "cuda" else device.type == "cpu" and cpu_has_tiles()
    wants_bf16 = precision == "bf16" or (precision == "auto" and is_faster)
    return torch.bfloat16 if wants_bf16 else torch.float32


def _gpu_has_bf16(device: torch.device) -> bool:
    """Whether a GPU has bf16 arithmetic, emulation not counted.

    ``torch.cuda.is_bf16_supported`` without emulation says the same, but of the current device alone.
    """
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY


def cpu_has_tiles() -> bool:
    """Whether this CPU multiplies bf16 in tiles (AMX).

    This depends on its features and on oneDNN's limit on them, ``ONEDNN_MAX_CPU_ISA``.
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return "amx_bf16" in processor.features() and (allowed in ("DEFAULT", "ALL") or "AMX" in allowed)


def explain(device: torch.device | str, *, precision: Precision = "auto", backend: Backend = "auto") -> dict[str, str]:
    """A reconstruction's precision and backend on a device, each with its reason.

    Returns:
        A sentence for "precision" and one for "backend".

    Raises:
        ValueError: either does not run there.

    Example:
        >>> explain("cpu", precision="fp32")["precision"]
        'fp32: asked for.'
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be one that this machine has, got {str(device)!r}")
    chosen = {torch.bfloat16: "bf16", torch.float32: "fp32"}[operand_dtype(precision, device)]
    check_backend(backend, device)
    if precision != "auto":
        reason = "asked for"
    elif device.type == "cuda":
        reason = "the GPU has bf16 arithmetic" if chosen == "bf16" else "the GPU has no bf16 arithmetic"
    elif chosen == "bf16":
        reason = "the CPU multiplies bf16 in tiles (amx_bf16)"
    else:
        reason = "the CPU has no bf16 tiles (amx_bf16), or ONEDNN_MAX_CPU_ISA excludes them"
        if backend == "native" and fast_in_bf16():
            reason += ', but "bf16" is faster for all but small networks (avx512_bf16)'
    if backend != "auto":
        ways = f"{backend}: asked for."
    elif device.type == "cuda" and torch.version.cuda is not None:
        ways = "auto: each backend is tried at the first reconstruction of 58 iterations or more; the fastest is taken."
    elif device.type == "cpu":
        kernels, found = loading.loaded()
        other = "is not there" if kernels is None else "would be faster, with fresh noise of its own"
        ways = f'torch: the same on every CPU. "native" {other}: {found}.'
    else:
        ways = "torch: the others need a CPU or an NVIDIA GPU."
    return {"precision": f"{chosen}: {reason}.", "backend": ways}


def check_backend(backend: Backend, device: torch.device | None = None, config: DIPConfig | None = None) -> None:
    """Refuse a backend that cannot fit the network on the device.

    Raises:
        ValueError: the backend is unknown, does not run on the device, or has no kernels for the network; the message
            says what is missing.
    """
    choice("backend", backend, get_args(Backend))
    if backend in ("triton", "native") and config is not None and (variants := config.variants()):
        named = ", ".join(f"{name}={value!r}" for name, value in variants.items())
        raise ValueError(f'backend="{backend}" has no kernels for DIPConfig({named}); use backend="torch"')
    if backend == "native" and device is not None:
        if device.type != "cpu":
            raise ValueError(
                f'backend="native" needs the images on a CPU, got images on {device}; move them there (images.cpu()) '
                'or use backend="auto"'
            )
        loading.required()
        return
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
    if backend == "triton" and (capability := torch.cuda.get_device_capability(device)) < _BF16_CAPABILITY:
        raise ValueError(
            f'backend="triton" needs a GPU of compute capability {".".join(map(str, _BF16_CAPABILITY))} or later, '
            f'and {device} has {".".join(map(str, capability))}; use backend="torch"'
        )


def triton_interpreted() -> bool:
    """Whether Triton is to interpret its kernels.

    It then runs them on any device, but too slowly for anything but checks.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_config(config: DIPConfig | None) -> DIPConfig:
    """The configuration, or the paper's for None.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(config, DIPConfig | None):
        raise TypeError(f"config must be a DIPConfig such as DIPConfig.compact(), or None, got {shown(config)}")
    return config or DIPConfig()


def check_budgets(budgets: Sequence[int]) -> tuple[int, ...]:
    """The budgets as an ascending tuple of Python's integers.

    Raises:
        TypeError: they are not a sequence, or one is not an integer.
        ValueError: there are none, one is outside [1, 1,000,000], or they do not ascend.
    """
    expected = "a sequence of iteration counts such as (500, 750, 1000)"
    given = several("budgets", budgets, expected=expected, most=MAX_ITERATIONS)
    if not given:
        raise ValueError("budgets must name at least one iteration count, such as (500, 750, 1000); got none")
    checked = tuple(integer("each of the budgets", budget, low=1, high=MAX_ITERATIONS) for budget in given)
    if any(later <= earlier for earlier, later in itertools.pairwise(checked)):
        raise ValueError(f"budgets must ascend and name no count twice, got {shown(checked)}")
    return checked


def check_images(images: Tensor, config: DIPConfig | None = None, *, out_of_range: OutOfRange = "raise") -> Tensor:
    """Refuse anything but a batch of images in [0, 1].

    With a configuration, the images must also be large enough for it.

    Args:
        images: what came.
        config: the method's numbers, where the images are to be reconstructed.
        out_of_range: "clip" brings finite values that lie outside into [0, 1], with the gradient of unclipped ones,
            so that an attack can bring a pixel back.

    Returns:
        The images, clipped where that was asked for and needed.

    Raises:
        TypeError: they are not a dense tensor of floats.
        ValueError: they have the wrong shape, are too small, are not finite, or lie outside [0, 1] by more than 1e-4,
            which is left to rounding.
    """
    choice("out_of_range", out_of_range, get_args(OutOfRange))
    check_tensor(images)
    check_shape(images.shape)
    if config is not None:
        config.scales_for(*images.shape[2:])
    if len(images) == 0:
        return images
    # A NaN anywhere is both the least and the greatest value.
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = (~images.detach().flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"images must be finite, but NaN or infinity is in the images at {bad}")
    if out_of_range == "clip":
        return clipped(images, low, high) if low < 0 or high > 1 else images
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}; {scale_advice(low, high)}"
        )
    return images


def check_logits(logits: object, count: int) -> Tensor:
    """A classifier's output, refused unless it is an (N, classes) tensor of logits.

    N is ``count``, the number of images.

    Raises:
        TypeError: it is not a tensor, or not of a floating dtype.
        ValueError: it has another shape, or fewer than two classes.
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


def check_seed(seed: Seed) -> int | tuple[int, ...] | None:
    """The seed or seeds as Python's integers.

    Raises:
        TypeError: they are not an integer, integers or None.
        ValueError: a seed is outside [0, 2**63).
    """
    if seed is None:
        return None
    scalar = isinstance(seed, int) or getattr(seed, "ndim", None) == 0
    if isinstance(seed, Iterable) and not scalar:
        return tuple(_seed(each) for each in several("seed", seed, expected=_SEED, most=_MAX_SEEDS))
    return _seed(seed)


def resolve_seeds(seed: Seed, count: int) -> list[int]:
    """One seed per image: the integer for all, the given ones, or fresh ones.

    Fresh seeds come from the CPU's default generator.

    Raises:
        TypeError, ValueError: they are not seeds, or not as many as the images.
    """
    checked = check_seed(seed)
    if checked is None:
        return torch.randint(2**63 - 1, (count,), device="cpu").tolist()
    seeds = [checked] * count if isinstance(checked, int) else list(checked)
    if len(seeds) != count:
        raise ValueError(f"seed must be one integer or one per image, got {len(seeds)} seeds for {count} images")
    return seeds


def _seed(value: object) -> int:
    return integer("seed", value, low=0, high=2**63 - 1, expected=_SEED)
