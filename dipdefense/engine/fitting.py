"""N networks being fitted: their noise, optimiser and iterations by any backend."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dipdefense.checks import Request, triton_interpreted
from dipdefense.config import Backend
from dipdefense.engine import compiled, graphs, heap
from dipdefense.engine.adam import Aligned, Moments, adam
from dipdefense.engine.network import SkipNets
from dipdefense.engine.variants import VariantNets
from dipdefense.native import loading
from dipdefense.native.iteration import Iteration, fits

# Pixels of an image from which innermost channels pay on a CPU.
_LARGE = 160 * 160


class Iterations(Protocol):
    """One backend's iterations of all networks, and what its trial reads."""

    def __call__(self) -> None:
        """Do the next iteration; a GPU may not have finished it when this returns."""

    def fresh_noise(self) -> Tensor:
        """The last iteration's fresh noise: (N, input_channels, H, W) fp32.

        The iteration added it to the fixed noise.
        """

    def weights(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Copies of some networks' parameters, named and shaped as in ``Networks``.

        Args:
            rows: (M,) int64, the networks.
        """


class Fitting:
    """The networks of a request. Each call does the next iteration of all of them.

    Initial weights and fixed noise depend on the seeds alone, not on the backend. The compiled and the Triton kernels
    have generators of their own for the fresh noise.

    Args:
        request: at least one image.
        backend: one of ``BACKENDS`` that runs on the images' device.

    Attributes:
        request: as given.
        target: (N, C, H, W) fp32: the images.
        generators: one per image, after it has given the initial weights and the fixed noise.
        networks: with their initial weights.
        fixed_noise: (N, input_channels, H, W) fp32.
        outputs: (N, C, H, W) fp32 in [0, 1]: the networks' outputs at the last iteration.
        losses: (N,) fp32: the mean squared error of each.
        iterate: the backend's iterations, which fill ``outputs`` and ``losses``.
    """

    def __init__(self, request: Request, backend: Backend) -> None:
        self.request = request
        config, device = request.config, request.images.device
        count, channels, height, width = request.images.shape
        # Compiled kernels read the pixels in this order, and a sum in another one would be rounded differently.
        self.target = request.images.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in request.seeds]
        kind = VariantNets if config.variants() else SkipNets
        self.networks = kind(
            config,
            image_channels=channels,
            scales=config.scales_for(height, width),
            generators=self.generators,
            device=device,
        )
        self.fixed_noise = self.target.new_empty(count, config.input_channels, height, width)
        for noise, generator in zip(self.fixed_noise, self.generators, strict=True):
            noise.uniform_(0, config.input_scale, generator=generator)
        self.outputs = torch.empty_like(self.target)
        self.losses = self.target.new_empty(count)
        self.iterate = BACKENDS[backend](self)

    def __call__(self) -> None:
        """Do the next iteration; a GPU may not have finished it when this returns."""
        self.iterate()

    def keep(self, rows: Tensor) -> None:
        """Drop all networks but some, which continue as they would in the whole batch.

        Args:
            rows: (M,) int64, the networks to keep, at least one.

        Raises:
            TypeError: the backend is not "torch".
        """
        if not isinstance(self.iterate, ByTorch):
            raise TypeError('only backend="torch" can drop networks from a batch')
        moments = self.iterate.moments(rows)
        images, chosen = self.request.images[rows], rows.tolist()
        seeds = tuple(self.request.seeds[row] for row in chosen)
        self.request = dataclasses.replace(self.request, images=images, seeds=seeds)
        self.generators = [self.generators[row] for row in chosen]
        self.target, self.fixed_noise = self.target[rows], self.fixed_noise[rows]
        self.outputs, self.losses = self.outputs[rows], self.losses[rows]
        for parameter in self.networks.parameters():
            parameter.grad = None
            parameter.data = parameter.detach()[rows]
        self.iterate = ByTorch(self, moments=moments)


class ByTorch:
    """Iterations by torch's operators, launched one by one or from a CUDA graph.

    Args:
        fitting: with the initial weights, or with those that the moments belong to.
        replayed: whether from a graph.
        moments: from :meth:`moments`, to continue a larger batch's iterations; None to begin.
    """

    # Neither this nor ``update`` holds the Fitting, which holds them: a cycle would keep a chunk's memory until
    # Python's collector runs.
    def __init__(self, fitting: Fitting, *, replayed: bool = False, moments: Sequence[Moments] | None = None) -> None:
        self._networks, self._generators = fitting.networks, fitting.generators
        self._noise = torch.empty_like(fitting.fixed_noise)
        update, self._optimiser, self._parameters = _torch_update(
            fitting, self._noise, capturable=replayed, moments=moments
        )
        self._run = graphs.Replayed(update, fitting.target.device) if replayed else update

    def __call__(self) -> None:
        """See :class:`Iterations`."""
        # Outside the graph: setting every image's generator before a replay would take more launches than sampling.
        for noise, generator in zip(self._noise, self._generators, strict=True):
            noise.normal_(0, self._networks.config.noise_std, generator=generator)
        self._run()

    def on(self, noise: Tensor) -> None:
        """Do the next iteration with this fresh noise instead of a sample."""
        self._noise.copy_(noise)
        self._run()

    def fresh_noise(self) -> Tensor:
        """See :class:`Iterations`."""
        return self._noise

    def weights(self, rows: Tensor) -> Mapping[str, Tensor]:
        """See :class:`Iterations`."""
        return {name: parameter.detach()[rows] for name, parameter in self._networks.named_parameters()}

    def moments(self, rows: Tensor) -> list[Moments]:
        """Adam's state of some networks, one entry per parameter.

        There is none before the first iteration.
        """
        return [parameter.moments(self._optimiser, rows) for parameter in self._parameters]


def _torch_update(
    fitting: Fitting, fresh_noise: Tensor, *, capturable: bool, moments: Sequence[Moments] | None
) -> tuple[Callable[[], None], torch.optim.Optimizer, list[Aligned]]:
    """An iteration after its noise: output, loss, gradients and Adam.

    Every call reads and writes the same tensors.

    Returns:
        The iteration, its optimiser, and the parameters as the optimiser has them.
    """
    networks, target, fixed_noise = fitting.networks, fitting.target, fitting.fixed_noise
    outputs, losses = fitting.outputs, fitting.losses
    config, operands = networks.config, fitting.request.operands
    parameters = [Aligned(parameter) for parameter in networks.parameters()]
    optimiser = adam(parameters, config, capturable=capturable)
    # The last image of a batch keeps the batch's layout when the others are dropped: see ``_layout``.
    layout = _layout(target) if moments is None else torch.contiguous_format
    for parameter, state in zip(parameters, moments or (), strict=False):
        parameter.take_moments(optimiser, state)

    def update() -> None:
        output = networks((fresh_noise + fixed_noise).to(operands, memory_format=layout))
        error = (output - target).square().mean(dim=(1, 2, 3))
        networks.zero_grad()
        # The sum, not the mean: a network's gradient must not depend on how many others are fitted beside it.
        error.sum().backward()
        for parameter in parameters:
            parameter.take_gradient()
        optimiser.step()
        outputs.copy_(output.detach())
        losses.copy_(error.detach())

    return update, optimiser, parameters


def _layout(target: Tensor) -> torch.memory_format:
    """The memory format of the activations of (N, C, H, W) images.

    Convolutions of one large image are fastest with the channels innermost, a layout that grouped convolutions do not
    have. Images of a size that is fitted in batches never take it, so that one alone is rounded as in a batch.
    """
    innermost = target.is_cpu and len(target) == 1 and target[0, 0].numel() >= _LARGE
    return torch.channels_last if innermost else torch.contiguous_format


class BetweenConvolutions:
    """Iterations by torch's convolutions, and by compiled kernels between them.

    Raises:
        ValueError: there are no such kernels here; the message says why.
    """

    def __init__(self, fitting: Fitting) -> None:
        self._kernels = loading.required()
        self._networks, self._target = fitting.networks, fitting.target
        self._outputs, self._losses = fitting.outputs, fitting.losses
        self._parameters = [Aligned(parameter) for parameter in fitting.networks.parameters()]
        self._optimiser = adam(self._parameters, fitting.request.config)
        self._fixed = fitting.fixed_noise.contiguous(memory_format=_layout(fitting.target))
        self._input = torch.empty_like(self._fixed, dtype=fitting.request.operands)
        self._seeds = torch.tensor(fitting.request.seeds, dtype=torch.int64, device="cpu")
        self._iteration = 0

    def __call__(self) -> None:
        """See :class:`Iterations`."""
        networks, kernels = self._networks, self._kernels
        self._iteration += 1
        kernels.perturb(self._fixed, self._seeds, self._iteration, networks.config.noise_std, self._input)
        with compiled.using(kernels):
            features = networks.features(self._input)
        weight, bias = networks.get_parameter("output_weight"), networks.get_parameter("output_bias")
        head = kernels.head(features.detach(), weight.detach().flatten(2), bias.detach(), self._target)
        networks.zero_grad()
        torch.autograd.backward(features, head.grad_features)
        weight.grad, bias.grad = head.grad_weight.view_as(weight), head.grad_bias
        for parameter in self._parameters:
            parameter.take_gradient()
        self._optimiser.step()
        self._outputs.copy_(head.outputs)
        self._losses.copy_(head.losses)

    def fresh_noise(self) -> Tensor:
        """See :class:`Iterations`; rounded as the input is."""
        return self._input.float() - self._fixed

    def weights(self, rows: Tensor) -> Mapping[str, Tensor]:
        """See :class:`Iterations`."""
        return {name: parameter.detach()[rows] for name, parameter in self._networks.named_parameters()}


def by_native(fitting: Fitting) -> Iterations:
    """Iterations by the compiled kernels, whole or between torch's convolutions.

    The kernels do whole iterations of networks that :func:`dipdefense.native.iteration.fits` accepts.

    Raises:
        ValueError: there are no such kernels here; the message says why.
    """
    request, networks = fitting.request, fitting.networks
    if not fits(request.config, request.operands):
        return BetweenConvolutions(fitting)
    return Iteration(
        loading.required(), {name: each.detach() for name, each in networks.named_parameters()}, fitting.fixed_noise,
        fitting.target, request.seeds, config=request.config, scales=networks.scales, operands=request.operands,
        outputs=fitting.outputs, losses=fitting.losses,
    )  # fmt: skip


class ByKernels:
    """Iterations by the Triton kernels, replayed from a CUDA graph.

    In Triton's interpreter nothing is captured.
    """

    def __init__(self, fitting: Fitting) -> None:
        from dipdefense.engine.kernels.iteration import Iteration

        request, networks = fitting.request, fitting.networks
        self._own = Iteration(
            dict(networks.named_parameters()), fitting.fixed_noise, fitting.target, request.seeds,
            config=request.config, scales=networks.scales, operands=request.operands,
            iterations=request.budgets[-1], outputs=fitting.outputs, losses=fitting.losses,
        )  # fmt: skip
        device = fitting.target.device
        self._run = self._own if triton_interpreted() else graphs.Replayed(self._own, device)

    def __call__(self) -> None:
        """See :class:`Iterations`."""
        self._run()

    def fresh_noise(self) -> Tensor:
        """See :class:`Iterations`."""
        return self._own.fresh_noise()

    def weights(self, rows: Tensor) -> Mapping[str, Tensor]:
        """See :class:`Iterations`."""
        return self._own.weights(rows)


BACKENDS: dict[Backend, Callable[[Fitting], Iterations]] = {
    "torch": ByTorch,
    "cudagraphs": functools.partial(ByTorch, replayed=True),
    "triton": ByKernels,
    "native": by_native,
}
"""Each backend's way to iterate over the networks of a :class:`Fitting`."""


@contextlib.contextmanager
def surroundings(device: torch.device) -> Iterator[None]:
    """The state in which networks are fitted, whatever the caller's mode.

    Autograd is on and autocast off. On a CPU the heap keeps freed memory; a GPU is the current device.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        if device.type == "cpu":
            with heap.kept():
                yield
        elif device.type == "cuda":
            # Graphs are captured and Triton's kernels launched on the current device, which need not be the images'.
            with torch.cuda.device(device):
                try:
                    yield
                finally:
                    # A graph's memory must not go back while the GPU still works in it.
                    torch.cuda.current_stream().synchronize()
        else:
            yield
