"""One random sample of a defence, by a seed.

An attack meets random numbers of a defence here alone. Every defence takes its random numbers from torch's default
generators, so a sample is a call while those are seeded. A defence that was given a seed of its own is deterministic,
and every sample of it is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def sampled(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the default generators within the block, and restore them afterwards.

    They are the CPU's and, where ``device`` is a CUDA device, that device's. Unlike ``torch.manual_seed`` this leaves
    every other device's generator alone.

    Example:
        >>> with sampled(3, torch.device("cpu")):
        ...     first = torch.rand(1)
        >>> with sampled(3, torch.device("cpu")):
        ...     bool(first == torch.rand(1))
        True
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@torch.no_grad()
def purified(defence: nn.Module, images: Tensor, *, seed: int) -> Tensor:
    """The defence's output for the random sample of a seed.

    No global generator is touched. A sample is a batch's: an image may get another one in a batch of other images.

    Args:
        defence: maps images to images.
        images: (N, C, H, W) floats in [0, 1].
        seed: in [0, 2**63).
    """
    with sampled(seed, images.device):
        output: Tensor = defence(images.clone())  # which it may change in place
    return output


def derived(seed: int, *path: int | str) -> int:
    """A seed in [0, 2**63) for each path.

    No generator's state has to be kept between steps.

    Example:
        >>> derived(0, "step", 1) == derived(0, "step", 1), derived(0, "step", 1) == derived(0, "step", 2)
        (True, False)
    """
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
