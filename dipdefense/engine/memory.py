"""How many images can be fitted at once."""

from __future__ import annotations

import os

import torch

from dipdefense.checks import Request
from dipdefense.config import Backend, DIPConfig

# Share of the free memory that a chunk may plan for: allocators fragment, and the caller needs some too.
_SHARE = 0.7

# Of a parameter: itself, its gradient and two moments. The kernels' rows hold those beside the networks' start, with a
# copy in the operands' dtype and one that the merged normalisation is folded into.
_PARAMETER_BYTES = {"torch": 4 * 4, "cudagraphs": 4 * 4, "triton": 4 * 4 + 10, "auto": 4 * 4 + 10}

# A CPU gains from a batch while its activations stay in the caches, and loses a little beyond that.
_CPU_PIXELS = 32 * 32 * 32


def bytes_per_image(
    config: DIPConfig,
    channels: int,
    height: int,
    width: int,
    operands: torch.dtype = torch.float32,
    *,
    backend: Backend = "torch",
) -> int:
    """Peak memory that fitting one image takes: its activations, its parameters, their gradients and moments.

    The numbers of tensors a pixel were fitted to measured peaks on a CPU: 430 to 540 MiB an image at 224×224 with the
    paper's network, 138 with the compact one, 31 at 32×32 with architecture 1. The kernels hold fewer activations, and
    the same number is assumed for them: by a count of their tensors, 0.6 times what is reckoned for the paper's network
    at 224×224 in bf16, 0.9 at 32×32 with architecture 1. No peak has been measured on a GPU.

    Args:
        config: the method's numbers.
        channels: of the image.
        height: of the image, in pixels.
        width: of the image, in pixels.
        operands: dtype of the convolutions' operands, and so of the activations.
        backend: what fits them.
    """
    scales = config.scales_for(height, width)
    c, skips = config.channels, config.skip_channels
    activations = 0
    for scale in range(scales):
        pixels = -(-height // 2**scale) * -(-width // 2**scale)
        inputs = config.input_channels if scale == 0 else c
        activations += pixels * (2 * inputs + 8 * skips + 10 * c) + pixels // 4 * 10 * c
    parameters = config.parameter_count(image_channels=channels, scales=scales)
    images = 8 * (channels + config.input_channels) * height * width
    return activations * operands.itemsize + parameters * _PARAMETER_BYTES[backend] + images


def images_that_fit(request: Request) -> int:
    """The number of a request's images to fit at once on the device where they are: at least one."""
    images = request.images
    if len(images) == 0:
        return 1
    _, channels, height, width = images.shape
    each = bytes_per_image(request.config, channels, height, width, request.operands, backend=request.backend)
    fitting = int(_SHARE * _free_bytes(images.device)) // each
    if images.device.type == "cpu":
        fitting = min(fitting, _CPU_PIXELS // (height * width))
    return max(1, fitting)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an allocator's way of saying that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
