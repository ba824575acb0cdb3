"""How many images can be fitted at once, and what is done if they were too many."""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from dipdefense.checks import Request
from dipdefense.config import Backend, DIPConfig
from dipdefense.engine import free, graphs, heap
from dipdefense.native.iteration import fits

T = TypeVar("T")

# Share of the free memory that a chunk may plan for; the rest is for fragmentation and the caller.
_SHARE = 0.7

# Of a parameter: itself, its gradient and two moments. The Triton kernels keep these in rows of their own beside the
# networks' initial weights, with a copy in the operands' dtype and one with the merged normalisation folded in. So do
# the native ones, with transient copies: 32 MiB an image of architecture 1 in bf16, measured with 16.
_PARAMETER_BYTES = {"torch": 4 * 4, "native": 6 * 4, "cudagraphs": 4 * 4, "triton": 4 * 4 + 10, "auto": 4 * 4 + 10}

# Activations of a variant, by plain operators, in units of the fast path's. An image of 224×224 took 250 to 300 MiB on
# a CPU with the compact network's variants, 370 with kernels of 5×5, and 160 with that network itself. In a batch each
# image takes less.
_PLAIN, _PLAIN_WIDE = 2.25, 3.0

# A CPU gains from a batch while its activations stay in the caches, and loses a little beyond that.
_CPU_PIXELS = 32 * 32 * 32

# Images at once on a GPU, however much memory it has: more do not fill it better, and grids have limits.
_GPU_IMAGES = 512

# Address space of the code that oneDNN makes for a network's convolutions, and keeps: 11 to 37 MiB measured.
_CODE_BYTES = 2**25

# How allocators and the libraries above them say in a RuntimeError that memory ran out.
_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # torch on a CPU, on Windows
    "std::bad_alloc",
    "could not create a memory",  # oneDNN
    "could not create a primitive",  # oneDNN, also of a primitive's descriptor
    "could not execute a primitive",  # oneDNN, for its scratchpad
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS, for its first workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN, where no plan's workspace fits
)


def bytes_per_image(
    config: DIPConfig,
    channels: int,
    height: int,
    width: int,
    operands: torch.dtype = torch.float32,
    *,
    backend: Backend = "torch",
) -> int:
    """Peak memory that fitting one image takes, in bytes.

    The estimate counts activations, parameters, their gradients and moments, images and noise.

    The numbers of tensors per pixel were fitted to peaks measured on a CPU: 430 to 540 MiB an image at 224×224 with the
    paper's network, 138 with the compact one, 31 at 32×32 with architecture 1. The Triton kernels hold fewer
    activations. By a count of their tensors they need 0.6 times this estimate for the paper's network at 224×224 in
    bf16, and 0.9 times at 32×32 with architecture 1. No peak has been measured on a GPU.

    Args:
        config: the method's numbers.
        channels: of the image.
        height: of the image, in pixels.
        width: of the image, in pixels.
        operands: dtype of the convolutions' operands, and so of the activations.
        backend: the one that fits the networks.
    """
    scales = config.scales_for(height, width)
    height, width = config.fitted_size(height, width)
    c, skips = config.channels, config.skip_channels
    activations = 0
    for scale in range(scales):
        pixels = -(-height // 2**scale) * -(-width // 2**scale)
        inputs = config.input_channels if scale == 0 else c
        activations += pixels * (2 * inputs + 8 * skips + 10 * c) + pixels // 4 * 10 * c
    if config.variants():
        activations = int(activations * (_PLAIN if config.kernel_size == 3 else _PLAIN_WIDE))
    parameters = config.parameter_count(image_channels=channels, scales=scales)
    images = 8 * (channels + config.input_channels) * height * width
    return activations * operands.itemsize + parameters * _PARAMETER_BYTES[backend] + images


def bytes_of_one(request: Request) -> int:
    """Peak memory that one of a request's images takes."""
    _, channels, height, width = request.images.shape
    return bytes_per_image(request.config, channels, height, width, request.operands, backend=request.backend)


class Room(NamedTuple):
    """The memory of a reconstruction.

    Attributes:
        each: bytes that one image is expected to take at its peak.
        free: bytes that are free where the images are.
        at_once: images to fit at once.
    """

    each: int
    free: int
    at_once: int


def room_for(request: Request, at_once: int) -> Room:
    """The memory of a request whose images are fitted ``at_once`` at a time."""
    return Room(bytes_of_one(request), _free_bytes(request.images.device), at_once)


def images_that_fit(request: Request) -> int:
    """The number of a request's images to fit at once on their device: at least one."""
    images = request.images
    if len(images) == 0:
        return 1
    fitting = int(_SHARE * _free_bytes(images.device)) // bytes_of_one(request)
    if images.device.type == "cpu":
        most = _CPU_PIXELS // math.prod(request.config.fitted_size(*images.shape[2:]))
        if request.backend == "native" and fits(request.config, request.operands):
            # These iterations do each image in a thread of its own.
            threads = torch.get_num_threads()
            most = max(threads, most // threads * threads)
        fitting = min(fitting, most)
    else:
        # Free memory changes a little between calls, and a trial of backends is of one number of images.
        fitting = fitting if fitting >= len(images) else _two_digits(fitting)
        fitting = min(fitting, _GPU_IMAGES)
    return max(1, fitting)


def _two_digits(count: int) -> int:
    """The number rounded down to two binary digits: at most a third less.

    Example:
        >>> _two_digits(3), _two_digits(127), _two_digits(128)
        (3, 96, 128)
    """
    unit = 1 << max(0, count.bit_length() - 2)
    return count // unit * unit


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return free.left_to_process()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is the error of an allocator that ran out of memory.

    The allocator is a GPU's or a CPU's. oneDNN raises the same for some other faults.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def in_chunks(
    fit: Callable[[slice, Callable[[], None]], T], count: int, chunk: int, *, device: torch.device, each: int
) -> list[T]:
    """Fit ``count`` images, ``chunk`` at a time.

    Where memory runs out, free it and retry with half as many. Under a limit on the process's address space
    (``ulimit -v``) chunks are made small enough to stay below it.

    On a CPU the heap keeps freed memory (:func:`heap.kept`) only after the first iteration, and not at all once memory
    has run out. Blocks that stay for good, such as oneDNN's primitives, then hold no freed memory back.

    Args:
        fit: fits the images of a slice; calls its second argument after every iteration.
        count: number of images. For none, ``fit`` is called once with the empty slice.
        chunk: number of images to begin with.
        device: where they are fitted.
        each: bytes that one image is expected to take.

    Returns:
        The results of the successful calls, in the images' order.

    Raises:
        Exception: whatever ``fit`` raises for another reason; and its error for a single image for which there is not
            enough memory, with a note of the memory needed and free.
    """
    parts: list[T] = []
    failed: list[int] = []
    start = 0
    with contextlib.ExitStack() as releasing:
        if device.type == "cpu":
            chunk = _within_limits(chunk, each)
            releasing.enter_context(heap.released())

        def iterated() -> None:
            if not failed:
                releasing.close()

        while start < count or not parts:
            stop = min(start + chunk, count)
            unused = _free_bytes(device)
            try:
                parts.append(fit(slice(start, stop), iterated))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failed.append(stop - start)
                switched = _gave_up_onednn(error)
                if stop - start <= 1 and not switched:
                    error.add_note(_note(failed, unused, each))
                    raise
            else:
                start = stop
                continue
            # Outside the except block, where the traceback no longer holds the failed attempt's tensors.
            gc.collect()
            if device.type == "cpu":
                releasing.close()
                releasing.enter_context(heap.released())
            elif device.type == "cuda":
                with graphs.alone:
                    torch.cuda.empty_cache()
            chunk = max(1, (stop - start) // 2)
    return parts


def _within_limits(chunk: int, each: int) -> int:
    """As many of ``chunk`` images as the limits on memory allow, but at least one.

    A failed attempt costs more than time: the code that oneDNN made for it keeps its address space.
    """
    if free.left_by_limits() is None:
        return chunk
    # torch's first optimiser imports its compiler: some 270 MB of address space, most of it Triton's library.
    torch.optim.Adam([torch.zeros(1)])
    left = free.left_by_limits() or 0
    return max(1, min(chunk, (int(_SHARE * left) - _CODE_BYTES) // each))


def _gave_up_onednn(error: Exception) -> bool:
    """Switch oneDNN off if it is on and could not make a primitive.

    A thread in which oneDNN once found no memory for its code gets no new primitives, however much is free later: its
    code generator keeps the error (fixed by oneDNN's pull request 5907).
    """
    if "could not create a primitive" not in str(error) or not torch.backends.mkldnn.enabled:
        return False
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    warnings.warn(
        "oneDNN could not create a primitive, and may refuse new shapes in this thread from now on. It is switched off "
        "for this process; torch.backends.mkldnn.enabled = True switches it on again",
        RuntimeWarning,
        stacklevel=2,
    )
    return True


def _note(failed: list[int], unused: int, each: int) -> str:
    return (
        f"Memory ran out with {', '.join(map(str, failed))} images at once. One image is expected to take "
        f"{each / 2**20:.0f} MiB; {unused / 2**20:.0f} MiB were free before the last attempt. "
        "Fit smaller images or a smaller network, or raise the limit. If more was free than an image takes, the error "
        "has another cause."
    )
