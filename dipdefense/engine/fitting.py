"""N networks on their way to N images: their noise, their optimiser, and one iteration at a time by any backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dipdefense.checks import Request, triton_interpreted
from dipdefense.config import Backend
from dipdefense.engine import graphs, heap
from dipdefense.engine.network import SkipNets

# Elements of the widest vector register: 64 bytes of fp32.
_VECTOR = 16

# Pixels from which channels that are innermost pay, on a CPU.
_LARGE = 160 * 160


class Fitting:
    """The networks of a request. Each call does the next iteration of all of them.

    Initial weights and fixed noise depend on the seeds alone, not on the backend. The fresh noise of the Triton kernels
    has a generator of its own.

    Args:
        request: at least one image.
        backend: one that runs on the images' device.

    Attributes:
        outputs: (N, C, H, W) fp32 in [0, 1]: the networks' outputs at the last iteration.
        losses: (N,) fp32: the mean squared error of each.
    """

    def __init__(self, request: Request, backend: Backend) -> None:
        self._request = request
        config, device = request.config, request.images.device
        count, channels, height, width = request.images.shape
        self._target = request.images.detach().to(torch.float32, copy=True)
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in request.seeds]
        self._networks = SkipNets(
            config,
            image_channels=channels,
            scales=config.scales_for(height, width),
            generators=self._generators,
            device=device,
        )
        self._fixed_noise = self._target.new_empty(count, config.input_channels, height, width)
        for noise, generator in zip(self._fixed_noise, self._generators, strict=True):
            noise.uniform_(0, config.input_scale, generator=generator)
        self.outputs = torch.empty_like(self._target)
        self.losses = self._target.new_empty(count)
        self._iterate = self._by_kernels() if backend == "triton" else self._by_torch(replayed=backend == "cudagraphs")

    def __call__(self) -> None:
        """Do the next iteration; a GPU may not have finished it when this returns."""
        self._iterate()

    def _by_kernels(self) -> Callable[[], None]:
        from dipdefense.engine.kernels.iteration import Iteration

        request = self._request
        own = Iteration(
            dict(self._networks.named_parameters()), self._fixed_noise, self._target, request.seeds,
            config=request.config, scales=self._networks.scales, operands=request.operands,
            iterations=request.budgets[-1], outputs=self.outputs, losses=self.losses,
        )  # fmt: skip
        return own if triton_interpreted() else graphs.Replayed(own, self._target.device)

    def _by_torch(self, *, replayed: bool) -> Callable[[], None]:
        networks, target, fixed_noise, operands = (
            self._networks,
            self._target,
            self._fixed_noise,
            self._request.operands,
        )
        config = networks.config
        parameters = [_Aligned(parameter) for parameter in networks.parameters()]
        optimiser = torch.optim.Adam(
            [parameter.values for parameter in parameters],
            lr=config.learning_rate, betas=config.betas, eps=config.adam_eps, fused=True, capturable=replayed,
        )  # fmt: skip
        # Convolutions of one large image are fastest with the channels innermost; groups of channels have no such
        # layout. Images of which several may be fitted at once never take it, so that one alone is rounded as in a
        # batch.
        innermost = target.is_cpu and len(target) == 1 and target[0, 0].numel() >= _LARGE
        layout = torch.channels_last if innermost else torch.contiguous_format
        fresh_noise = torch.empty_like(fixed_noise)

        def update() -> None:
            output = networks((fresh_noise + fixed_noise).to(operands, memory_format=layout))
            error = (output - target).square().mean(dim=(1, 2, 3))
            networks.zero_grad()
            # The sum, not the mean: a network's gradient must not depend on how many others are fitted beside it.
            error.sum().backward()
            for parameter in parameters:
                parameter.take_gradient()
            optimiser.step()
            self.outputs.copy_(output.detach())
            self.losses.copy_(error.detach())

        run = graphs.Replayed(update, target.device) if replayed else update

        def iterate() -> None:
            # Outside the graph: to set every image's generator before a replay takes more launches than to sample.
            for noise, generator in zip(fresh_noise, self._generators, strict=True):
                noise.normal_(0, config.noise_std, generator=generator)
            run()

        return iterate


class _Aligned:
    """A parameter as the optimiser updates it: whole vectors of elements.

    On a CPU fused Adam treats the last elements that fill no vector one by one, with other roundings. They are other
    images' elements in another batch.
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


@contextlib.contextmanager
def surroundings(device: torch.device) -> Iterator[None]:
    """Autograd in fp32, whatever mode the caller is in, and the state that a device wants while networks are fitted."""
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
