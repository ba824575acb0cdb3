"""Rules that end an image's fit before its budget.

They are an option: the default is the paper's fixed budgets. A rule scores each output of an image and keeps the output
with the least score. Once ``patience`` iterations have not improved on that score, the kept output is the image's
reconstruction. No image's score depends on another's.

No rule sees the clean image or the classifier. On 100 CIFAR-10 images, clean and attacked, each was significantly below
the best fixed budget (``benchmarks/results/stopping-cifar10``).

Example:
    >>> from dipdefense import reconstruct
    >>> from dipdefense.config import DIPConfig
    >>> rule = Variance(warm_up=2, patience=3)
    >>> run = reconstruct(torch.rand(2, 3, 32, 32), budgets=(20,), config=DIPConfig.architecture_2(), stopping=rule)
    >>> all(stopped <= iterations <= 20 for stopped, iterations in zip(run.stopped, run.iterations))
    True
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.arguments import choice, integer, real, shown
from dipdefense.config import MAX_ITERATIONS, Backend

RuleName = Literal["variance", "trend"]
"""The rules that have a name, with their default settings."""

# Side of DIPDefend's patches, in pixels.
_PATCH = 32

# Squared error of 200 dB: a perfect patch has a finite PSNR.
_LEAST_ERROR = 1e-20


class Watch(abc.ABC):
    """A rule's state for a batch of fits.

    The first axis of every tensor is that of the images still fitted.

    Args:
        images: (N, C, H, W) fp32, the fits' targets.
        rule: its warm-up and patience.

    Attributes:
        stopped: (N,) int64 on the CPU: the iteration of the least score so far; 0 before there is one.
        outputs: (N, C, H, W) fp32: the outputs of those iterations.
    """

    def __init__(self, images: Tensor, rule: Rule) -> None:
        self._warm_up, self._patience = rule.warm_up, rule.patience
        self.stopped = torch.zeros(len(images), dtype=torch.int64, device="cpu")
        self.outputs = torch.zeros_like(images)
        self._least = torch.full((len(images),), torch.inf, dtype=torch.float64, device="cpu")

    def __call__(self, iteration: int, outputs: Tensor) -> Tensor:
        """Take in an iteration.

        Args:
            iteration: from 1 on, every one in turn.
            outputs: (N, C, H, W) fp32, those of this iteration.

        Returns:
            (N,) bool on the CPU: the fits that end with this iteration, never one that has diverged.
        """
        scores = self._scores(iteration, outputs)
        if iteration <= self._warm_up:
            return torch.zeros(len(outputs), dtype=torch.bool, device="cpu")
        better = scores < self._least
        self._least[better], self.stopped[better] = scores[better], iteration
        rows = better.to(outputs.device)
        self.outputs[rows] = outputs[rows]
        return (self.stopped > 0) & (iteration - self.stopped >= self._patience) & scores.isfinite()

    def keep(self, rows: Tensor) -> None:
        """Forget all but some of the images.

        Args:
            rows: (M,) int64 on the CPU.
        """
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows.to(value.device)])

    @abc.abstractmethod
    def _scores(self, iteration: int, outputs: Tensor) -> Tensor:
        """(N,) float64 on the CPU: the least is the best."""


@dataclass(frozen=True, kw_only=True)
class Rule(abc.ABC):
    """The settings of a rule.

    Attributes:
        warm_up: iterations at the beginning whose scores do not count.
        patience: iterations without a new least score after which the fit ends.

    Raises:
        TypeError, ValueError: a setting is not a number, or outside its range.
    """

    warm_up: int
    patience: int

    def __post_init__(self) -> None:
        """Refuse settings that no fit could be stopped with."""
        self._set("warm_up", integer("warm_up", self.warm_up, low=0, high=MAX_ITERATIONS))
        self._set("patience", integer("patience", self.patience, low=1, high=MAX_ITERATIONS))

    def _set(self, name: str, value: object) -> None:
        """Keep a checked number as Python's own."""
        object.__setattr__(self, name, value)

    def _check_share(self, name: str) -> None:
        expected = "a number above 0 and at most 1"
        self._set(name, real(name, getattr(self, name), expected=expected, holds=lambda x: 0 < x <= 1))

    @property
    def settings(self) -> dict[str, Any]:
        """The rule in types that JSON has, for records."""
        return {"rule": type(self).__name__.lower()} | dataclasses.asdict(self)

    @abc.abstractmethod
    def watch(self, images: Tensor) -> Watch:
        """The state of a run before its first iteration.

        Args:
            images: (N, C, H, W) fp32, the fits' targets.
        """


@dataclass(frozen=True, kw_only=True)
class Variance(Rule):
    """Stop where the moving variance of an image's outputs is least.

    Wang et al., "Early Stopping for Deep Image Prior" (TMLR 2023, arXiv 2112.06074), in their form ES-EMV with an
    exponential moving mean and variance and their ``decay``. It takes the memory of two more images per image. Their
    other form, ES-WMV, keeps the last 100 outputs.

    Their patience is 1,000 in runs of 5,000 iterations, after 100 that do not count. Budgets here are 500 to 1,000, and
    the patience of 100 is a fifth of the smallest. After the warm-up of 50 iterations, the first output's share in the
    moving mean is half a per cent.

    Attributes:
        decay: share of the newest output in the moving mean and variance.
    """

    warm_up: int = 50
    patience: int = 100
    decay: float = 0.1

    def __post_init__(self) -> None:
        """Refuse settings that no fit could be stopped with."""
        super().__post_init__()
        # One output has no variance, and 0 is the least there is.
        integer("warm_up", self.warm_up, low=1)
        self._check_share("decay")

    def watch(self, images: Tensor) -> Watch:
        """See :class:`Rule`."""
        return _VarianceWatch(images, self)


class _VarianceWatch(Watch):
    def __init__(self, images: Tensor, rule: Variance) -> None:
        super().__init__(images, rule)
        self._decay = rule.decay
        self._mean = images
        self._variance = torch.zeros(len(images), dtype=torch.float64, device="cpu")

    def _scores(self, iteration: int, outputs: Tensor) -> Tensor:
        if iteration == 1:
            self._mean = outputs.clone()
            return self._variance
        deviation = outputs - self._mean
        self._mean += self._decay * deviation
        squares = _each(lambda row: row.square().mean(), deviation)
        self._variance = (1 - self._decay) * (self._variance + self._decay * squares)
        return self._variance


@dataclass(frozen=True, kw_only=True)
class Trend(Rule):
    """Stop where the smoothed PSNR between output and input peaks.

    Dai et al., "DIPDefend: Deep Image Prior Driven Defense against Adversarial Examples" (ACM Multimedia 2020): the
    PSNR of each output's worst patch of 32×32 pixels, smoothed twice (Holt) with one weight for level and slope. The
    early slope carries the smoothed curve above the PSNR, and its peak comes where the PSNR has flattened out. As in
    the authors' code, pixels beyond the last whole patch do not count.

    Four things differ. Their code runs to the end and takes the highest peak; here a fit ends after ``patience``
    iterations without a higher one. Their weight is 0.002 in runs of 4,000 iterations (400 on CIFAR-10); here it is
    four times that for 1,000. Their first slope is the difference of the first two PSNRs, which is below zero for most
    images with the networks here, and the curve would fall from the beginning; here it is the mean rise over the
    warm-up. Their network has no skip branches and no fresh noise at its input; here the configuration decides.

    Attributes:
        warm_up: iterations whose mean rise is the first slope, at least 2; they do not count.
        smoothing: weight of the newest PSNR, and of the newest slope.
    """

    warm_up: int = 20
    patience: int = 50
    smoothing: float = 0.008

    def __post_init__(self) -> None:
        """Refuse settings that no fit could be stopped with."""
        super().__post_init__()
        integer("warm_up", self.warm_up, low=2)
        self._check_share("smoothing")

    def watch(self, images: Tensor) -> Watch:
        """See :class:`Rule`."""
        return _TrendWatch(images, self)


class _TrendWatch(Watch):
    def __init__(self, images: Tensor, rule: Trend) -> None:
        super().__init__(images, rule)
        self._images, self._smoothing = images, rule.smoothing
        self._first = self._level = self._slope = torch.zeros(len(images), dtype=torch.float64, device="cpu")

    def _scores(self, iteration: int, outputs: Tensor) -> Tensor:
        worst = _each(_worst_patch, (outputs - self._images).square())
        psnr = -10 * worst.clamp_min(_LEAST_ERROR).log10()
        if iteration == 1:
            self._first = psnr
        if iteration <= self._warm_up:
            self._level, self._slope = psnr, (psnr - self._first) / (self._warm_up - 1)
        else:
            before, rest = self._level, 1 - self._smoothing
            self._level = self._smoothing * psnr + rest * (before + self._slope)
            self._slope = self._smoothing * (self._level - before) + rest * self._slope
        return -self._level


def check_stopping(stopping: RuleName | Rule | None) -> Rule | None:
    """The rule of this name with its default settings, or the rule as it is.

    None, for fixed budgets, stays None.

    Raises:
        TypeError: it is not one of these.
        ValueError: no rule has this name.
    """
    if stopping is None or isinstance(stopping, Rule):
        return stopping
    if not isinstance(stopping, str):
        raise TypeError(
            f'stopping must be "variance", "trend", a rule such as Variance(patience=100), or None for fixed budgets; '
            f"got {shown(stopping)}"
        )
    choice("stopping", stopping, get_args(RuleName))
    return Variance() if stopping == "variance" else Trend()


def stoppable(backend: Backend) -> Backend:
    """The backend for a run with a rule: "torch".

    It is the only one that can drop an image from a batch.

    Raises:
        ValueError: another one was asked for.
    """
    if backend not in ("auto", "torch"):
        raise ValueError(
            f'stopping needs backend="torch", got "{backend}", which cannot drop images from a batch; leave backend or '
            "stopping out"
        )
    return "torch"


def _each(score: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """A score of each row as (N,) float64 on the CPU.

    One row at a time: the rounding of a sum over all of them at once depends on their number.
    """
    # Apple's GPUs have no float64.
    return torch.stack([score(row) for row in rows]).cpu().double()


def _worst_patch(error: Tensor) -> Tensor:
    """The largest mean of a (C, H, W) error over a patch."""
    sides = [min(side, _PATCH) for side in error.shape[1:]]
    return F.avg_pool2d(error.mean(dim=0, keepdim=True), sides).amax()
