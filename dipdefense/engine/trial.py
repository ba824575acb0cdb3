"""One backend's trial: it is compared with torch's operators, then timed.

The optimisation is chaotic. Adam's first updates have the size of the learning rate however small the gradient is, and
a coarse feature map of four pixels is divided by a standard deviation near zero. Two correct backends whose rounding
differs are as far apart as two seeds from the second or third iteration on. So single iterations are compared:

* Torch's operators repeat every iteration from the backend's own weights and on its own noise.
* The trial's networks have a well-conditioned normalisation: its ε is 0.1, and the input is ten times as large, so that
  the variance still matters beside it.

Outputs and losses then differ by rounding alone. On a CPU, some 300 networks at 32×32 to 224×224 pixels, rounded to the
operands' dtype in one of two ways, differed by at most 2.5 u, where u is the unit roundoff: 2⁻⁸ for bf16 and 2⁻¹¹ for
TF32. The direction of an update is less certain, because rounding flips the signs of small gradients. Its cosine was at
least 0.56 for bf16 and 0.78 for TF32, in the layer and network where it was smallest. The Triton kernels, interpreted
with architecture 2 on one image, were off by 0.4 u in bf16, with a cosine of at least 0.90.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dipdefense.checks import Request
from dipdefense.config import Backend, DIPConfig
from dipdefense.engine import graphs
from dipdefense.engine.fitting import ByTorch, Fitting

# The first two calls of a graph are its warm-up and the third captures it, so that two of four are replays.
COMPARED, TIMED, WARM_UP = 4, 3, 2
# Images whose iterations are repeated, spread over the batch; losses are checked against outputs for all of them.
_IMAGES = 8
# Twice the largest difference found, in unit roundoffs; and the difference between fp32 sums of ten thousand terms.
_OFF, _FLOOR = 5, 1e-4
_COSINE = {torch.bfloat16: 0.4, torch.float32: 0.6}
_LENGTH = 0.1
# Standard errors that the noise's statistics may be off by: a right generator fails once in a thousand million checks.
_SIGMAS = 6


class Mismatch(Exception):  # noqa: N818 - its message is the rest of "the backend is set aside: …"
    """A backend differs from torch's operators.

    The message says which check failed and by how much.
    """


class _Step(NamedTuple):
    """One iteration of the compared networks, with their weights after it."""

    noise: Tensor
    outputs: Tensor
    losses: Tensor
    weights: Mapping[str, Tensor]


def iterations(candidates: int) -> int:
    """Iterations of a trial of so many backends.

    Those of torch's operators are included, and a capture counts as one.
    """
    return WARM_UP + TIMED + candidates * (COMPARED + 1 + TIMED + COMPARED)


def clock(device: torch.device) -> float:
    """The time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        with graphs.alone:
            torch.cuda.synchronize(device)
    return time.perf_counter()


def release(device: torch.device) -> None:
    """Free what was dropped, and graphs' private memory, which nothing else can use."""
    gc.collect()
    if device.type == "cuda":
        with graphs.alone:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()


def time_plain(request: Request) -> float:
    """Seconds that an iteration of torch's operators takes in the steady state."""
    fitting = Fitting(_of_trial(request), "torch")
    for _ in range(WARM_UP):
        fitting()
    return _timed(fitting)


def prove(request: Request, backend: Backend) -> float:
    """Seconds that an iteration takes in the steady state, if every check passes.

    Args:
        request: at least one image.
        backend: one that runs on the images' device.

    Raises:
        Mismatch: it differs from torch's operators.
        Exception: whatever a driver, a compiler or an allocator raises.
    """
    request = _of_trial(request)
    count = len(request.images)
    rows = torch.linspace(0, count - 1, min(count, _IMAGES), device=request.images.device).round().long()
    initial, steps, seconds = _observed(request, backend, rows)
    release(request.images.device)
    some = [request.seeds[row] for row in rows.tolist()]
    _compare(dataclasses.replace(request, images=request.images[rows], seeds=tuple(some)), initial, steps)
    _check_noise(torch.stack([step.noise for step in steps]), request.config, request.operands)
    return seconds


def _of_trial(request: Request) -> Request:
    """The request with the trial's own configuration, seeds and images.

    The outcome then depends on these alone.
    """
    config = request.config
    config = dataclasses.replace(
        config, norm_eps=max(config.norm_eps, 0.1), input_scale=10 * config.input_scale, noise_std=10 * config.noise_std
    )
    device = request.images.device
    images = torch.rand(request.images.shape, generator=torch.Generator(device).manual_seed(0), device=device)
    return dataclasses.replace(
        request, images=images, config=config, seeds=tuple(range(len(images))), budgets=(COMPARED + TIMED,)
    )


def _observed(request: Request, backend: Backend, rows: Tensor) -> tuple[Mapping[str, Tensor], list[_Step], float]:
    """Initial weights, first iterations, and the seconds of an iteration.

    Weights and iterations are those of the compared networks. The seconds are those of all networks.
    """
    fitting = Fitting(request, backend)
    initial, steps = fitting.iterate.weights(rows), []
    for number in range(1, COMPARED + 1):
        fitting()
        errors = (fitting.outputs - fitting.target).square().mean(dim=(1, 2, 3))
        own = bool(((fitting.losses - errors).abs() <= _FLOOR * errors).all())
        _require(own, f"its losses at iteration {number} are not the errors of its outputs")
        noise = fitting.iterate.fresh_noise()[rows]
        steps.append(_Step(noise, fitting.outputs[rows], fitting.losses[rows], fitting.iterate.weights(rows)))
    seconds = _timed(fitting)
    return initial, steps, seconds


def _timed(fitting: Fitting) -> float:
    laps = []
    for _ in range(TIMED):
        begun = clock(fitting.target.device)
        fitting()
        laps.append(clock(fitting.target.device) - begun)
    return statistics.median(laps)


def _compare(request: Request, initial: Mapping[str, Tensor], steps: Sequence[_Step]) -> None:
    """Repeat each iteration by torch's operators, on the same weights and noise.

    Raises:
        Mismatch: outputs, losses or the weights' updates differ by more than rounding.
    """
    plain = Fitting(request, "torch")
    iterate = plain.iterate
    assert isinstance(iterate, ByTorch)
    allowed = _OFF * _roundoff(request) + _FLOOR
    agreement = _Agreement()
    before = initial
    for number, step in enumerate(steps, start=1):
        with torch.no_grad():
            for name, parameter in plain.networks.named_parameters():
                parameter.copy_(before[name])
        iterate.on(step.noise)
        off = (step.outputs - plain.outputs).square().mean(dim=(1, 2, 3)).sqrt().max().item()
        _require(off <= allowed, f"its outputs at iteration {number} are off by {off:.1e} (allowed: {allowed:.1e})")
        off = ((step.losses - plain.losses).abs() / plain.losses).max().item()
        _require(off <= allowed, f"its losses at iteration {number} are off by {off:.1%} (allowed: {allowed:.1%})")
        after = dict(plain.networks.named_parameters())
        lengths = agreement.add(
            {name: step.weights[name] - before[name] for name in before},
            {name: after[name].detach() - before[name] for name in before},
        )
        worst = lengths[(lengths - 1).abs().argmax()].item()
        _require(
            abs(worst - 1) <= _LENGTH, f"its update at iteration {number} is {worst:.2f} times as long as it must be"
        )
        before = step.weights
    layer, cosine = agreement.least()
    _require(
        cosine >= (least := _COSINE[request.operands]),
        f"its updates of {layer} point elsewhere: their cosine is {cosine:.2f} (at least {least} is allowed)",
    )


class _Agreement:
    """Cosines of two backends' updates of each image's layers, over all iterations.

    Scales and shifts are taken together: some have a gradient that is zero but for rounding.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, own: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> Tensor:
        """Add one iteration's updates.

        Returns:
            The length of each image's update in ``own``, divided by that in ``plain``.
        """
        totals = torch.zeros(())
        for name in own:
            a, b = own[name].flatten(1), plain[name].flatten(1)
            sums = torch.stack([(a * b).sum(1), a.square().sum(1), b.square().sum(1)])
            layer = name if name.endswith("_weight") else "scales and shifts"
            self._sums[layer] = self._sums[layer] + sums if layer in self._sums else sums
            totals = totals.to(sums) + sums
        return (totals[1] / totals[2]).sqrt()

    def least(self) -> tuple[str, float]:
        """The layer with the smallest cosine, and that cosine."""
        cosines = {layer: (dot / (own * plain).sqrt()).min().item() for layer, (dot, own, plain) in self._sums.items()}
        # A layer that is never updated has NaN, which counts as the smallest.
        return min(cosines.items(), key=lambda pair: -math.inf if math.isnan(pair[1]) else pair[1])


def _check_noise(noise: Tensor, config: DIPConfig, operands: torch.dtype) -> None:
    """Check the noise's mean, standard deviation and correlations.

    Iterations, images and parts of an image must be uncorrelated.

    Args:
        noise: (iterations, images, input_channels, H, W).
        config: the trial's.
        operands: dtype that the input was rounded to.

    Raises:
        Mismatch: a check fails.
    """
    samples, std = noise.flatten(2), config.noise_std
    size = samples.shape[2]
    # The noise is recovered from the rounded input, and so is off by up to:
    rounding = torch.finfo(operands).eps * (config.input_scale + 4 * std)
    means, deviations = samples.mean(2).abs().max().item(), (samples.std(2) - std).abs().max().item()
    bound = _SIGMAS * std / math.sqrt(size) + rounding
    _require(means <= bound, f"its noise's mean is {means:.1e} (allowed: {bound:.1e})")
    _require(deviations <= bound, f"its noise's standard deviation is off by {deviations:.1e} (allowed: {bound:.1e})")
    if std == 0:
        return
    quarters = samples[..., : size // 4 * 4].view(*samples.shape[:2], 4, -1)
    pairs = {
        "iterations": itertools.pairwise(samples),
        "images": itertools.pairwise(samples.unbind(1)),
        "parts of an image": itertools.pairwise(quarters.unbind(2)),
    }
    for what, neighbours in pairs.items():
        for a, b in neighbours:
            correlation = ((a * b).mean(-1) / std**2).abs().max().item()
            bound = _SIGMAS / math.sqrt(a.shape[-1]) + rounding / std
            _require(correlation <= bound, f"its noise of different {what} is correlated by {correlation:.2f}")


def _roundoff(request: Request) -> float:
    """The unit roundoff of convolutions' operands; a GPU may shorten fp32 to TF32."""
    if request.operands == torch.bfloat16:
        return 2.0**-8
    return 2.0**-11 if request.images.is_cuda else 2.0**-24


def _require(passed: bool, otherwise: str) -> None:
    # Every check is a comparison that does not hold for NaN.
    if not passed:
        raise Mismatch(otherwise)
