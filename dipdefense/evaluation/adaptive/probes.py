"""Properties of a defence that decide how it must be attacked.

They are found out on a few images, before any attack. Six of them are those that AutoAttack warns of (Croce & Hein
2020, ``checks.py``): random outputs, probabilities instead of logits, zero gradients, Square stronger than the
gradients (which takes an attack, see ``sanity``), optimisation at inference, and too few classes for its losses. The
others find defences whose answers do not come from the image.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dipdefense.attacks import noise
from dipdefense.attacks.adaptive.samples import purified, sampled
from dipdefense.modes import evaluated
from dipdefense.purifier import DIPPurifier

# Two seeds that no attack and no judging draw has: those come from hashes.
_SEEDS = (1, 2)
_EPSILON = 8
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Probes:
    """Properties of one defence in front of one classifier.

    Attributes:
        randomised: two seeds give two outputs.
        samples: it takes random numbers, whether or not they change the output.
        repeatable: one seed gives one output, whatever was asked in between.
        looks: another image gets another output with the same seed.
        optimises: it takes gradients while it purifies.
        probabilities: the classifier's outputs are positive and sum to one.
        zero_gradients: images, of ``images``, at which the loss has no gradient.
        images: images that were probed.
        classes: of the classifier.
        own_gradient: it has a gradient, and another than the identity's.
    """

    randomised: bool
    samples: bool
    repeatable: bool
    looks: bool
    optimises: bool
    probabilities: bool
    zero_gradients: int
    images: int
    classes: int
    # Not known of reports that were written before it was asked.
    own_gradient: bool = False

    def to_json(self) -> dict[str, Any]:
        """In types that JSON has."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The probes that ``to_json`` wrote.

        Raises:
            TypeError: a property is missing or unknown.
        """
        return cls(**stored)


def probe(defence: nn.Module, classifier: nn.Module, images: Tensor, labels: Tensor) -> Probes:
    """Probe a defence; it is run five times on the images.

    Args:
        defence: images to images.
        classifier: from the defence's output to logits.
        images: (N, C, H, W) floats in [0, 1]; a few are enough.
        labels: (N,) integers.
    """
    first, second = _SEEDS
    other = noise(images, epsilon=_EPSILON, seed=0)
    with evaluated(classifier), evaluated(defence):
        # The first call too: a defence may draw once, and keep what it drew.
        with _Sampling() as at_first:  # type: ignore[no-untyped-call]
            output = purified(defence, images, seed=first)
        resampled = purified(defence, images, seed=second)
        elsewhere = purified(defence, other, seed=first)
        with _watched() as seen, _Sampling() as sampling:  # type: ignore[no-untyped-call]
            again = purified(defence, images, seed=first)
        with torch.no_grad():
            logits = classifier(output)
        gradient, behind = _gradients(defence, classifier, images, labels, seed=first)
    return Probes(
        randomised=_differ(output, resampled),
        samples=at_first.seen or sampling.seen,
        repeatable=not _differ(output, again),
        looks=output.shape != elsewhere.shape or bool((output - elsewhere).abs().max() > _ROUNDING),
        optimises=bool(seen) or any(isinstance(part, DIPPurifier) for part in defence.modules()),
        probabilities=bool((logits >= -_ROUNDING).all() and ((logits.sum(dim=1) - 1).abs() < _ROUNDING).all()),
        zero_gradients=int((gradient.flatten(1).abs().sum(dim=1) == 0).sum()),
        images=len(images),
        classes=logits.shape[1],
        own_gradient=bool(gradient.any()) and _differ(gradient, behind),
    )


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one, other)


def _gradients(
    defence: nn.Module, classifier: nn.Module, images: Tensor, labels: Tensor, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the true label's loss at the images and at the defence's output.

    The first is through the defence's own backward pass. Both are zero where the defence has no backward pass, or one
    that raises, as ``DIPPurifier(gradient="none")``.
    """
    variable = images.detach().clone().requires_grad_()
    with sampled(seed, images.device):
        output = defence(variable.clone())  # which it may change in place
        logits = classifier(output)
    none = torch.zeros_like(images)
    if not output.requires_grad or not logits.requires_grad:
        return none, none
    loss = F.cross_entropy(logits.float(), labels.to(logits.device), reduction="sum")
    try:
        own, behind = torch.autograd.grad(loss, (variable, output), allow_unused=True)
    except RuntimeError:
        return none, none
    return none if own is None else own, none if behind is None else behind


class _Sampling(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator that takes random numbers, from any generator."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


@contextmanager
def _watched() -> Iterator[list[str]]:
    """Yield a list that gets the name of each call that takes gradients.

    It sees calls from any caller and under any import.
    """
    watched = {function.__code__ for function in (torch.autograd.grad, torch.autograd.backward)}
    seen: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in watched:
            seen.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(before)
