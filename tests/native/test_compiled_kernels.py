"""Compiled kernels against float64 operators: layouts, dtypes, sizes, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense import processor
from dipdefense.engine import compiled, ops
from dipdefense.native import loading, proof
from dipdefense.native.library import _SIGNATURES, Kernels

# (images, channels, height, width); channels innermost where the last is true.
SHAPES = [
    (1, 32, 40, 36, True), (1, 19, 33, 31, True), (1, 5, 2, 3, True), (1, 129, 9, 7, True),
    (1, 4, 40, 31, False), (3, 5, 17, 16, False), (2, 16, 32, 32, False), (1, 1, 2, 2, False), (2, 3, 61, 67, False),
]  # fmt: skip
# Units of rounding of the largest value; sums of ten thousand terms are in blocks of a thousand.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCE)
EPS = 1e-5


def tensor(*shape: int, dtype: torch.dtype = torch.float32, innermost: bool = False) -> Tensor:
    values = torch.randn(shape).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if innermost else values


def compare(kernels: Kernels, call, inputs: list[Tensor], grad: Tensor, dtype: torch.dtype) -> None:
    """Check the call by kernels, forward and backward, against operators in float64."""

    def passes(inputs: list[Tensor]) -> list[Tensor]:
        leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs]
        out = call(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    exact = passes([each.double() for each in inputs])
    with compiled.using(kernels):
        own = passes(inputs)
    for mine, right, like in zip(own, exact, [grad, *inputs], strict=True):
        assert mine.dtype == like.dtype
        assert (mine.double() - right).abs().max() <= TOLERANCE[dtype] * right.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("slope", "shifted"), [(0.2, True), (0.0, True), (None, False)])
def test_normalise(native: Kernels, shape, dtype, slope, shifted) -> None:
    *size, innermost = shape
    x, grad = (tensor(*size, dtype=dtype, innermost=innermost) for _ in range(2))
    # Beside a mean far from zero a variance is easily lost.
    x = x + 5
    rows = [tensor(*size[:2]), *([tensor(*size[:2])] if shifted else [])]

    def call(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        return ops.normalise(x, scale, shift, eps=EPS, slope=slope)

    if x.shape[2:].numel() > 4:
        compare(native, call, [x, *rows], grad, dtype)
    with compiled.using(native):
        assert call(x, *rows).stride() == x.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("odd", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=str)
def test_normalise_upsampled(native: Kernels, shape, dtype, odd) -> None:
    *size, innermost = shape
    low, grad = (tensor(*size, dtype=dtype, innermost=innermost) for _ in range(2))
    height, width = (2 * side - cropped for side, cropped in zip(size[2:], odd, strict=True))

    def call(low: Tensor, scale: Tensor) -> Tensor:
        return ops.normalise_upsampled(low, scale, height=height, width=width, eps=EPS)

    compare(native, call, [low, tensor(*size[:2])], grad, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(40, 36), (33, 31), (2, 3), (9, 8)], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 32), (1, 5), (3, 17), (15, 16)])
def test_convolve_narrow(native: Kernels, inputs, outputs, size, dtype, monkeypatch) -> None:
    x, weight = tensor(1, inputs, *size, dtype=dtype), tensor(1, outputs, inputs, 3, 3)
    addend, grad = (tensor(1, outputs, *size, dtype=dtype, innermost=True) for _ in range(2))

    def call(x: Tensor, weight: Tensor, addend: Tensor) -> Tensor:
        return ops.convolution(x, weight, addend=addend)

    used = []
    run = native.convolve_narrow
    monkeypatch.setattr(native, "convolve_narrow", lambda *args: used.append(1) or run(*args))
    compare(native, call, [x, weight, addend], grad, dtype)
    assert used


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("outputs", [1, 3, 4])
def test_the_last_layer_and_the_loss(native: Kernels, shape, dtype, outputs) -> None:
    count, channels, height, width, innermost = shape
    features = tensor(count, channels, height, width, dtype=dtype, innermost=innermost)
    weight, bias = tensor(count, outputs, channels), tensor(count, outputs)
    target = torch.rand(count, outputs, height, width)
    own = native.head(features, weight, bias, target)
    leaves = [each.double().requires_grad_() for each in (features, weight, bias)]
    logits = torch.einsum("noc,nchw->nohw", leaves[1], leaves[0]) + leaves[2][..., None, None]
    plain = torch.sigmoid(logits)
    losses = (plain - target).square().mean(dim=(1, 2, 3))
    exact = (plain, losses, *torch.autograd.grad(losses.sum(), leaves))
    assert own.grad_features.stride() == features.stride()
    for mine, right in zip(own, exact, strict=True):
        bound = TOLERANCE[mine.dtype] * max(1.0, mine.ndim == 4 and 2.0)
        assert (mine.double() - right).abs().max() <= bound * right.abs().max()


def test_fresh_noise_is_normal(native: Kernels) -> None:
    fixed, out = torch.full((1, 1, 2048, 2048), 3.0), torch.empty(1, 1, 2048, 2048)
    native.perturb(fixed, torch.tensor([2**62 + 7]), 5, 0.5, out)
    samples = ((out - fixed) / 0.5).flatten().double()
    count = len(samples)
    # Moments up to the fourth, each within five standard errors of a normal distribution's.
    for power, (moment, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs(samples.pow(power).mean() - moment) < 5 * (variance / count) ** 0.5, power
    probabilities = torch.arange(1, 100, dtype=torch.float64) / 100
    quantiles = torch.special.ndtri(probabilities)
    shares = torch.searchsorted(samples.sort().values, quantiles) / count
    assert ((shares - probabilities).abs() < 5 * (probabilities * (1 - probabilities) / count).sqrt()).all()
    # The neighbours in memory, in a vector, and in a chunk of four vectors.
    for lag in (1, 16, 32, 48, 64, 2048):
        assert abs((samples[lag:] * samples[:-lag]).mean()) < 5 / count**0.5, lag


def test_fresh_noise_is_philox(native: Kernels) -> None:
    """The published test vector of Philox 4×32-10 for a zero key and counter.

    The samples are its words through Box and Muller's formula.
    """
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    out = torch.empty(1, 1, 1, 64)
    native.perturb(torch.zeros_like(out), torch.tensor([0]), 0, 1.0, out)
    for (radius, angle), places in {(words[0], words[1]): (0, 16), (words[2], words[3]): (32, 48)}.items():
        uniform = torch.tensor((radius >> 8) * 2.0**-24 + 2.0**-25, dtype=torch.float64)
        length = (-2 * uniform.log()).sqrt()
        quadrant, rest = angle >> 30, (angle & 0x3FFFFFFF) / 2**30
        turn = torch.tensor((rest if rest < 0.5 else rest - 1), dtype=torch.float64) * torch.pi / 2
        whole = turn + quadrant * torch.pi / 2
        pair = out[0, 0, 0, list(places)].double()
        assert torch.allclose(pair, length * torch.stack([whole.cos(), whole.sin()]), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_number_of_threads_changes_no_bit(native: Kernels, dtype) -> None:
    def everything() -> list[Tensor]:
        torch.manual_seed(0)
        found: list[Tensor] = []
        for innermost in (True, False):
            x, grad = (tensor(1, 20, 65, 63, dtype=dtype, innermost=innermost) for _ in range(2))
            scale = tensor(1, 20)
            out, statistics = native.normalise(x, scale, None, eps=EPS, slope=0.2)
            found += [out, *native.normalise_backward(x, grad, scale, scale, statistics, slope=0.2)]
            found += native.head(x, tensor(1, 3, 20), tensor(1, 3), torch.rand(1, 3, 65, 63))
            with compiled.using(native):
                leaf = x.requires_grad_()
                out = ops.normalise_upsampled(leaf, scale, height=129, width=126, eps=EPS)
                found += [out.detach(), *torch.autograd.grad(out, [leaf], grad)]
        narrow, weight = tensor(1, 4, 65, 63, dtype=dtype), tensor(1, 20, 4, 3, 3)
        grad = tensor(1, 20, 65, 63, dtype=dtype, innermost=True)
        return [
            *found,
            native.convolve_narrow(narrow, weight, grad),
            *native.convolve_narrow_backward(narrow, weight, grad),
        ]

    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(everything())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_image_alone_has_the_same_bits_as_in_a_batch(native: Kernels, dtype) -> None:
    x, grad, scale = tensor(3, 5, 37, 33, dtype=dtype), tensor(3, 5, 37, 33, dtype=dtype), tensor(3, 5)
    weight, bias, target = tensor(3, 3, 5), tensor(3, 3), torch.rand(3, 3, 37, 33)
    size = {"height": 2 * 37, "width": 2 * 33}

    def everything(rows: slice) -> list[Tensor]:
        own_x, own_grad, own_scale = x[rows], grad[rows], scale[rows]
        out, statistics = native.normalise(own_x, own_scale, own_scale, eps=EPS, slope=0.2)
        found = [out, *native.normalise_backward(own_x, own_grad, own_scale, own_scale, statistics, slope=0.2)]
        out, statistics = native.normalise_upsampled(own_x, own_scale, **size, eps=EPS)
        found += native.normalise_upsampled_backward(own_x, own_grad, own_scale, statistics, **size)
        return [out, *found, *native.head(own_x, weight[rows], bias[rows], target[rows])]

    together = everything(slice(None))
    for place in range(3):
        for alone, all_images in zip(everything(slice(place, place + 1)), together, strict=True):
            assert torch.equal(alone[0], all_images[place])


def test_a_nan_stays_one_and_stays_in_its_image(native: Kernels) -> None:
    for dtype in DTYPES:
        x = tensor(3, 4, 9, 9, dtype=dtype)
        x[1, 2, 3, 3] = torch.nan
        out, _ = native.normalise(x, torch.ones(3, 4), None, eps=EPS, slope=0.2)
        head = native.head(x, tensor(3, 3, 4), tensor(3, 3), torch.rand(3, 3, 9, 9))
        assert out[1, 2].isnan().all()
        assert out[[0, 2]].isfinite().all()
        assert head.losses.isnan().tolist() == [False, True, False]
        assert head.grad_weight[[0, 2]].isfinite().all()


@pytest.mark.parametrize("name", sorted(_SIGNATURES))
def test_a_wrong_kernel_is_found_out(native: Kernels, name: str, monkeypatch) -> None:
    function = getattr(native, name)

    def spoiled(*args, **options):
        result = function(*args, **options)
        spoil = args[-1] if result is None else result[0]
        spoil += 0.2
        return result

    proof.prove(native)
    monkeypatch.setattr(native, name, spoiled)
    with pytest.raises(proof.WrongError):
        proof.prove(native)


@pytest.mark.parametrize(("operands", "factor"), [(torch.float32, 1.02), (torch.bfloat16, 1.3)], ids=str)
@pytest.mark.parametrize("spoiled", ["outputs", "losses", "parameters"])
def test_a_wrong_iteration_is_found_out(native: Kernels, spoiled: str, operands, factor: float, monkeypatch) -> None:
    run = native.iterate
    monkeypatch.setattr(processor, "features", lambda: frozenset({"avx512_bf16"}))

    def wrong(shape, dtype, parameters, moments, fixed, target, outputs, losses, *rest) -> None:
        run(shape, dtype, parameters, moments, fixed, target, outputs, losses, *rest)
        found = {"outputs": outputs, "losses": losses, "parameters": parameters}[spoiled]
        if dtype == operands:
            found[-1].mul_(factor)

    proof.prove(native)
    monkeypatch.setattr(native, "iterate", wrong)
    with pytest.raises(proof.WrongError, match=f"iteration in {operands}"):
        proof.prove(native)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_proof_holds_in_whatever_mode(native: Kernels, mode) -> None:
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with mode(), torch.autocast("cpu", torch.bfloat16):
            proof.prove(native)
    finally:
        torch.set_default_dtype(default)


def test_float64_is_left_to_torch() -> None:
    assert compiled.current() is None
    assert loading.loaded().kernels is None  # the tests' own setting
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    out = ops.normalise(x, torch.ones(1, 2, dtype=torch.float64), None, eps=EPS)
    assert torch.allclose(out, F.instance_norm(x, eps=EPS))
