"""N networks on their way to N images: their noise, their optimiser, and one iteration at a time by any backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from dipdefense.checks import Request, triton_interpreted
from dipdefense.config import Backend
from dipdefense.engine import graphs, heap
from dipdefense.engine.network import SkipNets

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
        optimiser = torch.optim.Adam(
            networks.parameters(),
            lr=config.learning_rate, betas=config.betas, eps=config.adam_eps, fused=True, capturable=replayed,
        )  # fmt: skip
        # Convolutions of one large image are fastest with the channels innermost; groups of channels have no such
        # layout.
        innermost = len(target) == 1 and target[0, 0].numel() >= _LARGE
        layout = torch.channels_last if innermost else torch.contiguous_format
        fresh_noise = torch.empty_like(fixed_noise)

        def update() -> None:
            output = networks((fresh_noise + fixed_noise).to(operands, memory_format=layout))
            error = (output - target).square().mean(dim=(1, 2, 3))
            optimiser.zero_grad()
            # The sum, not the mean: a network's gradient must not depend on how many others are fitted beside it.
            error.sum().backward()
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
