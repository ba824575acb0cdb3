"""The Triton kernels against plain PyTorch, on a GPU or interpreted on a CPU.

Triton decides when it is imported whether its kernels are interpreted, and other tests must not be affected, so on a
CPU this file and its companions run again in processes of their own. ``TRITON_INTERPRET=1 pytest`` with a file's name
does that by hand; ``pytest -m gpu`` runs the same checks, at real sizes too, on a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

triton = pytest.importorskip("triton")

from dipdefense.engine.kernels import convolution, merge, normalisation, upsampled, weight_gradient  # noqa: E402
from dipdefense.engine.kernels.adam import adam, bias_corrections  # noqa: E402
from dipdefense.engine.kernels.epilogues import Finish  # noqa: E402
from dipdefense.engine.kernels.noise import perturb  # noqa: E402
from dipdefense.engine.kernels.tiles import Blocks, Operand  # noqa: E402

FILES = ("test_kernels.py", "test_kernels_network.py", "test_kernels_iteration.py")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs_kernels = pytest.mark.skipif(False, reason="") if INTERPRETED else pytest.mark.gpu
SLOPE = 0.2


@pytest.mark.skipif(INTERPRETED, reason="this is the process of its own")
@pytest.mark.parametrize("file", FILES)
def test_kernels_in_the_interpreter(file: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    path = str(Path(__file__).with_name(file))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stdout:
        pytest.skip("this version of Triton cannot interpret with this version of NumPy; Triton 3.6 needs NumPy < 2.4")
    assert done.returncode == 0, done.stdout[-5000:]


def channels_last(x: Tensor) -> Tensor:
    return x.detach().permute(0, 2, 3, 1).contiguous()


def taps_first(weight: Tensor) -> Tensor:
    """(N, out, in, k, k) to (N, k·k, in, out)."""
    return weight.detach().permute(0, 3, 4, 2, 1).flatten(1, 2).contiguous()


def plain_convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    if weight.shape[-1] == 3:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return torch.stack([F.conv2d(image[None], own, stride=stride)[0] for image, own in zip(x, weight, strict=True)])


def assert_near(result: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative in norm, so that NaN and what was never written fail."""
    error = (result.double() - expected.double()).norm() / expected.double().norm()
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Blocks so small that tiny tensors need several along every axis."""
    monkeypatch.setattr(convolution, "convolution_blocks", lambda *_, **__: Blocks(4, 4, 16, 16, 4, 2))
    monkeypatch.setattr(weight_gradient, "weight_blocks", lambda *_, **__: Blocks(16, 1, 16, 16, 4, 2))


CONVOLUTIONS = {
    "3x3": (2, 4, 5, 3, 1, (3, 6), torch.float32),
    "3x3, many channels": (1, 17, 18, 3, 1, (3, 4), torch.float32),
    "3x3, stride 2, even": (1, 4, 7, 3, 2, (6, 8), torch.float32),
    "3x3, stride 2, odd": (1, 4, 7, 3, 2, (5, 7), torch.float32),
    "3x3, three pixels": (1, 3, 4, 3, 1, (3, 3), torch.float32),
    "3x3, two pixels": (1, 3, 4, 3, 1, (2, 2), torch.float32),
    "1x1": (2, 4, 3, 1, 1, (5, 6), torch.float32),
    "3x3, bf16": (1, 4, 5, 3, 1, (4, 5), torch.bfloat16),
}


@runs_kernels
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_and_both_gradients(case, small_blocks) -> None:
    count, inputs, outputs, kernel, stride, size, dtype = case
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    x = torch.randn(count, inputs, *size, device=DEVICE).to(dtype).requires_grad_()
    weight = torch.randn(count, outputs, inputs, kernel, kernel, device=DEVICE).to(dtype).requires_grad_()
    expected = plain_convolution(x.double(), weight.double(), stride)
    grad = torch.randn_like(expected).to(dtype)
    expected.backward(grad.double())

    source, taps, pull = Operand(channels_last(x)), taps_first(weight), Operand(channels_last(grad))
    forward = convolution.forward_geometry(kernel, stride)
    result, _ = convolution.convolve(source, taps, forward, size=expected.shape[2:], slope=SLOPE)
    assert_near(result, channels_last(expected), tolerance)

    backward = convolution.gradient_geometry(kernel, stride)
    result = torch.full_like(source.values, torch.nan)
    convolution.convolve(pull, taps, backward, size=size, slope=SLOPE, backwards=True, out=result)
    assert_near(result, channels_last(x.grad), tolerance)

    # Two splits where there are pixels enough for two steps.
    out = torch.full(taps.shape, torch.nan, device=DEVICE)
    pairing = weight_gradient.convolution_pairing(kernel, stride)
    weight_gradient.weight_gradient(source, pull, out, pairing, slope=SLOPE, splits=2)
    assert_near(out, taps_first(weight.grad), tolerance)


@runs_kernels
@pytest.mark.parametrize("size", [(3, 4), (2, 2)], ids=["3x4", "2x2"])
def test_transposed_convolution_and_both_gradients(size, small_blocks) -> None:
    x = torch.randn(2, 4, *size, device=DEVICE, requires_grad=True)
    weight = torch.randn(2, 4, 5, 3, 3, device=DEVICE, requires_grad=True)
    padded, own = F.pad(x.double(), (1, 1, 1, 1), mode="replicate"), weight.double()
    expected = torch.stack([F.conv_transpose2d(padded[i], own[i], stride=2, padding=1) for i in range(2)])
    grad = torch.randn(expected.shape, device=DEVICE)
    expected.backward(grad.double())

    source, pull = Operand(channels_last(x)), Operand(channels_last(grad))
    taps = taps_first(weight.transpose(1, 2))
    geometry, adjoint = convolution.TRANSPOSED, convolution.TRANSPOSED_GRADIENT
    result, _ = convolution.convolve(source, taps, geometry, size=expected.shape[2:], slope=SLOPE)
    assert_near(result, channels_last(expected), 1e-5)
    result, _ = convolution.convolve(pull, taps, adjoint, size=size, slope=SLOPE, backwards=True)
    assert_near(result, channels_last(x.grad), 1e-5)
    out = torch.empty_like(taps)
    weight_gradient.weight_gradient(source, pull, out, weight_gradient.TRANSPOSED_PAIRING, slope=SLOPE)
    assert_near(out, taps_first(weight.grad.transpose(1, 2)), 1e-5)


@runs_kernels
def test_gradient_through_normalisation_and_activation(small_blocks) -> None:
    x = torch.randn(1, 3, 5, 6, device=DEVICE)
    first = torch.randn(1, 4, 3, 3, 3, device=DEVICE, requires_grad=True)
    second = torch.randn(1, 2, 4, 3, 3, device=DEVICE, requires_grad=True)
    scale, shift = (torch.randn(1, 4, device=DEVICE, requires_grad=True) for _ in range(2))
    raw = plain_convolution(x.double(), first.double(), 1)
    normalised = F.batch_norm(raw, None, None, scale[0].double(), shift[0].double(), training=True)
    expected = plain_convolution(F.leaky_relu(normalised, SLOPE), second.double(), 1)
    grad = torch.randn(expected.shape, device=DEVICE)
    expected.backward(grad.double())

    geometry = convolution.forward_geometry(3)
    values, partial = convolution.convolve(
        Operand(channels_last(x)), taps_first(first), geometry, size=(5, 6), slope=SLOPE, partial=True
    )
    coefficients = normalisation.normalisation(values, partial, scale.detach(), shift.detach(), eps=1e-5)
    feature = Operand(values, coefficients)
    result, _ = convolution.convolve(feature, taps_first(second), geometry, size=(5, 6), slope=SLOPE)
    assert_near(result, channels_last(expected), 1e-5)

    backward = convolution.gradient_geometry(3)
    half = torch.zeros_like(values)
    pull, partial = convolution.convolve(
        Operand(channels_last(grad)), taps_first(second), backward, size=(5, 6), slope=SLOPE, backwards=True,
        finish=Finish(raw=values, coefficients=coefficients), out=half, accumulate=True, partial=True,
    )  # fmt: skip
    grad_scale, grad_shift = torch.empty_like(scale), torch.empty_like(shift)
    grad_coefficients = normalisation.normalisation_gradient(values, partial, coefficients, grad_scale, grad_shift)
    assert_near(grad_scale, scale.grad, 1e-5)
    assert_near(grad_shift, shift.grad, 1e-5)
    out = torch.empty_like(taps_first(first))
    weight_gradient.weight_gradient(
        Operand(channels_last(x)), Operand(pull, grad_coefficients, values), out,
        weight_gradient.convolution_pairing(3), slope=SLOPE,
    )  # fmt: skip
    assert_near(out, taps_first(first.grad), 1e-5)


@runs_kernels
def test_other_memory_formats_are_refused() -> None:
    x = torch.zeros(1, 4, 5, 6, device=DEVICE).permute(0, 2, 3, 1)
    weight = torch.zeros(1, 1, 4, 4, device=DEVICE)
    geometry = convolution.forward_geometry(1)
    with pytest.raises(ValueError, match="contiguous"):
        convolution.convolve(Operand(x), weight, geometry, size=(5, 6), slope=SLOPE)
    pairing = weight_gradient.convolution_pairing(1)
    with pytest.raises(ValueError, match="contiguous"):
        weight_gradient.weight_gradient(Operand(x), Operand(x), weight, pairing, slope=SLOPE)


@runs_kernels
def test_statistics_survive_a_large_mean(small_blocks) -> None:
    x = torch.randn(1, 5, 6, 4, device=DEVICE) + 3000
    weight = torch.eye(4, device=DEVICE)[None, None]
    values, partial = convolution.convolve(
        Operand(x), weight, convolution.forward_geometry(1), size=(5, 6), slope=SLOPE, partial=True
    )
    one, zero = torch.ones(1, 4, device=DEVICE), torch.zeros(1, 4, device=DEVICE)
    inverse = normalisation.normalisation(values, partial, one, zero, eps=1e-12)[:, 3]
    assert_near(inverse, x.double().std(dim=(1, 2), correction=0).reciprocal(), 1e-4)


@runs_kernels
@pytest.mark.parametrize("merged", [(6, 8), (5, 7)], ids=["even", "odd"])
def test_moments_of_the_upsampled_activation(merged) -> None:
    low = torch.randn(2, 3, 3, 4, device=DEVICE) + 100
    coefficients = torch.ones(2, 4, 3, device=DEVICE)
    expected = F.interpolate(low.double() + 1, scale_factor=2, mode="bilinear")[..., : merged[0], : merged[1]]
    feature = Operand(channels_last(low), coefficients)
    mean, variance = merge.merge_moments(feature, merge=merge.UPSAMPLED.value, merged=merged, slope=SLOPE)
    assert_near(mean, expected.mean(dim=(2, 3)), 1e-6)
    assert_near(variance, expected.var(dim=(2, 3), correction=0), 1e-4)


@runs_kernels
@pytest.mark.parametrize("size", [(6, 8), (5, 7)], ids=["even", "odd"])
def test_filter_adjoint(size) -> None:
    spread = torch.randn(1, 3, *upsampled.spread_size(*size), device=DEVICE, requires_grad=True)
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=torch.float64, device=DEVICE)
    kernel = torch.outer(taps, taps).expand(3, 1, 4, 4)
    filtered = F.conv2d(spread.double(), kernel, groups=3)[..., : size[0], : size[1]]
    grad, raw = (torch.randn(filtered.shape, device=DEVICE) for _ in range(2))
    coefficients = torch.randn(1, 4, 3, device=DEVICE)
    p, q, r = (row[:, :, None, None] for row in coefficients[:, :3].unbind(dim=1))
    filtered.backward((p * grad + q * raw + r).double())
    result = upsampled.filter_adjoint(Operand(channels_last(grad), coefficients, channels_last(raw)))
    assert_near(result, channels_last(spread.grad), 1e-5)


def noise_of(seeds: list[int], iteration: int, dtype: torch.dtype = torch.float32) -> Tensor:
    fixed = torch.zeros(len(seeds), 15, 17, 9, device=DEVICE)
    out = torch.full_like(fixed, torch.nan, dtype=dtype)
    perturb(fixed, torch.tensor(seeds, device=DEVICE), torch.tensor(iteration, device=DEVICE), out, std=1.0)
    return out


@runs_kernels
def test_noise() -> None:
    noise = noise_of([5, 2**40 + 5, 5], 3)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1:2], noise_of([2**40 + 5], 3))
    flat = torch.cat([noise[:2].flatten(1), noise_of([5], 4).flatten(1)])
    size = flat.shape[1]
    torch.testing.assert_close(flat.mean(dim=1), torch.zeros(3, device=DEVICE), rtol=0, atol=5 / size**0.5)
    torch.testing.assert_close(flat.std(dim=1), torch.ones(3, device=DEVICE), rtol=0, atol=5 / size**0.5)
    tails = (flat.abs() > 1.959964).float().mean(dim=1)
    torch.testing.assert_close(tails, torch.full_like(tails, 0.05), rtol=0, atol=5 * (0.05 / size) ** 0.5)
    # Seeds, iterations and the four quarters of an image's elements differ from one another, in size as in sign.
    parts = flat.split(-(-size // 4), dim=1)
    quarters = torch.cat([part[:, : parts[-1].shape[1]] for part in parts])
    for numbers in (quarters, quarters.abs()):
        apart = torch.corrcoef(numbers) - torch.eye(12, device=DEVICE)
        assert apart.abs().max() < 5 / quarters.shape[1] ** 0.5


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, None], ids=["bf16 copy", "no copy"])
def test_adam(dtype) -> None:
    plain = torch.nn.Parameter(torch.randn(2, 700, dtype=torch.float64, device=DEVICE))
    own, moments = plain.detach().float(), (torch.zeros(2, 700, device=DEVICE), torch.zeros(2, 700, device=DEVICE))
    operands = None if dtype is None else torch.empty_like(own, dtype=dtype)
    optimiser = torch.optim.Adam([plain], lr=0.01)
    corrections = bias_corrections(3, learning_rate=0.01, betas=(0.9, 0.999), device=torch.device(DEVICE))
    for iteration in (1, 2, 3):
        plain.grad = torch.randn_like(plain) * 1e-4
        optimiser.step()
        count = torch.tensor(iteration, device=DEVICE)
        adam(own, plain.grad.float(), moments, operands, count, corrections, betas=(0.9, 0.999), eps=1e-8)
    torch.testing.assert_close(own, plain.detach().float(), rtol=0, atol=1e-6)
    if operands is not None:
        assert_near(operands, plain, 4e-3)
