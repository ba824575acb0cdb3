"""The least time of an iteration: operations, bytes and the machine's rates.

Operations and bytes are formulas and not counts of a contender's work, so the floor is the same for all. A test checks
the operations of the published network against PyTorch's own counter.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from dipdefense.config import DIPConfig


class Layer(NamedTuple):
    """One convolution of one network.

    Attributes:
        weights: multiplications per output pixel.
        pixels: of the output.
        input_gradient: whether the input needs a gradient; the noise does not.
        coarse_pixels: of the input before upsampling, where the convolution can be done there; otherwise of the output.
    """

    weights: int
    pixels: int
    input_gradient: bool
    coarse_pixels: int


def flops(config: DIPConfig, *, image_channels: int, height: int, width: int, rewritten: bool) -> int:
    """Operations of the convolutions for one image and iteration.

    They are those of the forward and the backward pass; a multiply-add counts as two.

    Args:
        config: the method's numbers.
        image_channels: of the output.
        height: in pixels.
        width: in pixels.
        rewritten: count convolutions of upsampled tensors at low resolution, which is exact and the least known;
            otherwise count them as published.
    """
    total = 0
    for layer in _layers(config, image_channels, height, width):
        pixels = layer.coarse_pixels if rewritten else layer.pixels
        total += 2 * layer.weights * pixels * (3 if layer.input_gradient else 2)
    return total


def least_bytes(config: DIPConfig, *, image_channels: int, height: int, width: int, operand_bytes: int) -> int:
    """Bytes that one image and iteration must move with perfect fusion.

    Every convolution reads its input and writes its output once, with whatever is pointwise, upsampling and the
    statistics done on the way; backwards, one pass reads the output and its gradient, reads the input, and writes the
    input's gradient. Adam and the weights are in fp32, with a copy of the weights in the operands' dtype.

    Args:
        config: the method's numbers.
        image_channels: of the output.
        height: in pixels.
        width: in pixels.
        operand_bytes: 4 for fp32 operands and activations, 2 for bf16.
    """
    elements = 0
    for scale, (pixels, coarse) in enumerate(_resolutions(config, height, width)):
        x = pixels * (config.channels if scale else config.input_channels)
        x_gradient = x if scale else 0
        skip, fine, low = pixels * config.skip_channels, pixels * config.channels, coarse * config.channels
        if skip:
            elements += (x + skip) + (2 * skip + x + x_gradient)
        elements += (x + low) + (2 * low + x + x_gradient)  # the convolution with stride 2
        elements += 2 * low + 4 * low  # the one after it
        elements += (low + skip + fine) + (2 * fine + 2 * low + 2 * skip)  # the one after merging
        elements += 2 * fine + 4 * fine  # 1×1
    image = height * width * image_channels
    features = height * width * config.channels
    elements += (features + image) + (2 * features + image)
    # Weights are read forwards and backwards, gradients written and read, and three states read and written.
    a_parameter = 2 * operand_bytes + 2 * 4 + 6 * 4 + (operand_bytes if operand_bytes < 4 else 0)
    parameters = config.parameter_count(image_channels=image_channels, scales=config.scales_for(height, width))
    return elements * operand_bytes + parameters * a_parameter


class Ceilings(NamedTuple):
    """The measured rates of the machine.

    Attributes:
        flops: operations per second of a large matrix product, or on a CPU of a large convolution if that is faster.
        bytes: bytes per second of a large copy, read and written.
    """

    flops: float
    bytes: float

    def least_seconds(self, flops: int, moved: int) -> float:
        """The larger of the times of the operations and of the bytes."""
        return max(flops / self.flops, moved / self.bytes)


def measure_ceilings(device: torch.device, dtype: torch.dtype, *, side: int, copied: int, repeats: int = 7) -> Ceilings:
    """Time a product of two random matrices and a copy of random numbers.

    Each rate is from the median of the repeats. On a GPU fp32 products use tf32 if convolutions may, which is torch's
    default. On a CPU a 3×3 convolution of many channels is timed too, and the higher rate counts: products in fp32 are
    slow on AMD's processors.

    Args:
        device: the device to measure.
        dtype: of the matrices.
        side: of the square matrices.
        copied: bytes to copy.
        repeats: of each measurement.
    """
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.rand(copied // 4, device=device)
    target = torch.empty_like(source)
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if torch.backends.cudnn.allow_tf32 else "highest")
    try:
        rate = 2 * side**3 / _median_seconds(lambda: left @ right, device, repeats)
        if device.type == "cpu":
            channels = side // 8
            shapes = (1, channels, 64, 64), (channels, channels, 3, 3)
            image, weight = (torch.rand(shape).to(dtype) for shape in shapes)
            seconds = _median_seconds(lambda: F.conv2d(image, weight, padding=1), device, repeats)
            rate = max(rate, 2 * weight.numel() * 64 * 64 / seconds)
    finally:
        torch.set_float32_matmul_precision(before)
    return Ceilings(rate, 2 * copied / _median_seconds(lambda: target.copy_(source), device, repeats))


def _median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        started = synchronised_clock(device)
        work()
        seconds.append(synchronised_clock(device) - started)
    return statistics.median(seconds)


def synchronised_clock(device: torch.device) -> float:
    """The time in seconds once the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _layers(config: DIPConfig, image_channels: int, height: int, width: int) -> Iterator[Layer]:
    c, s = config.channels, config.skip_channels
    for scale, (pixels, coarse) in enumerate(_resolutions(config, height, width)):
        inputs, gradient = (c if scale else config.input_channels), scale > 0
        yield Layer(inputs * s, pixels, gradient, pixels)
        yield Layer(9 * inputs * c, coarse, gradient, coarse)
        yield Layer(9 * c * c, coarse, True, coarse)
        yield Layer(9 * s * c, pixels, True, pixels)
        yield Layer(9 * c * c, pixels, True, coarse)
        yield Layer(c * c, pixels, True, pixels)
    yield Layer(c * image_channels, height * width, True, height * width)


def _resolutions(config: DIPConfig, height: int, width: int) -> Iterator[tuple[int, int]]:
    """The pixels of each scale and of the next coarser one."""
    for _ in range(config.scales_for(height, width)):
        coarse = -(-height // 2), -(-width // 2)
        yield height * width, coarse[0] * coarse[1]
        height, width = coarse
