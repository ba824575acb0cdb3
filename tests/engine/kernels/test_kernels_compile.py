"""The largest kernels compile as launched on an H100 (needs Triton but no GPU)."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from dipdefense.engine.kernels import convolution, merge, upsampled, weight_gradient  # noqa: E402
from dipdefense.engine.kernels.tiles import Blocks, convolution_blocks, stages_on, weight_blocks  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]
H100 = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 * 1024
# Such as an RTX 3090 or an A10: less shared memory than the H100 and the A100 have.
SMALLER = GPUTarget("cuda", 86, 32)
SMALLER_SHARED_BYTES = 99 * 1024
COUNTS = ("inputs", "outputs", "channels", "weight_step", "w_in", "w_out")


def convolve(geometry, kernel, blocks: Blocks, *, backwards: bool = False, **pointers):
    constants = {
        **geometry._asdict(), "kernel": kernel, "slope": 0.2, "accumulate": backwards,
        "w_in" if backwards else "w_out": 1,
        "ROWS": blocks.rows, "COLUMNS": blocks.columns, "BLOCK_OUT": blocks.outer, "BLOCK_IN": blocks.inner,
    }  # fmt: skip
    return convolution._convolve, {"x": "*bf16", "weight": "*bf16", "out": "*bf16", **pointers}, constants, blocks


def weights(pairing, **pointers):
    blocks = weight_blocks(128, 128, element_size=2)
    constants = {
        **pairing._asdict(), "kernel": 3, "slope": 0.2, "fp32_operands": False,
        "BLOCK_IN": blocks.rows, "BLOCK_OUT": blocks.outer, "BLOCK_STEPS": blocks.inner,
    }  # fmt: skip
    pointers = {"x": "*bf16", "x_coef": "*fp32", "grad": "*bf16", "out": "*fp32", **pointers}
    return weight_gradient._weight_gradient, pointers, constants, blocks


WIDE = convolution_blocks(128, 128, element_size=2)
FILTERED = convolution_blocks(4, 128, element_size=2, filtered=True)
POINTWISE = Blocks(4, 16, 1, 1, 4, 3)
ON_LOAD = {"x_coef": "*fp32"}
GRADIENT = {"x_coef": "*fp32", "x_raw": "*bf16", "y_raw": "*bf16", "y_coef": "*fp32", "partial": "*fp32"}
FILTER = {"spread_out": "*bf16", "strip_rows": "*fp32", "strip_columns": "*fp32"}
TILE = {"merge": 2, "slope": 0.2, "ROWS": 4, "COLUMNS": 16, "CHANNELS": 64}
MERGE = {"grad": "*bf16", "raw": "*bf16"} | dict.fromkeys(
    ("coef", "merge_coef", "edge_rows", "edge_columns", "partial"), "*fp32"
)
ADJOINT = {"grad": "*bf16", "grad_coef": "*fp32", "grad_raw": "*bf16", "out": "*bf16"}
KERNELS = {
    "convolution": convolve(convolution.forward_geometry(3), 3, WIDE, partial="*fp32", **ON_LOAD),
    "its gradient, stride 2": convolve(convolution.gradient_geometry(3, 2), 3, WIDE, backwards=True, **GRADIENT),
    "1x1 gradient": convolve(convolution.gradient_geometry(1), 1, WIDE, backwards=True, **GRADIENT),
    "transposed": convolve(convolution.TRANSPOSED, 3, WIDE, **ON_LOAD),
    "transposed gradient": convolve(convolution.TRANSPOSED_GRADIENT, 3, WIDE, backwards=True),
    "filtered": convolve(convolution.forward_geometry(3), 3, FILTERED, partial="*fp32", **ON_LOAD, **FILTER),
    "weights": weights(weight_gradient.convolution_pairing(3), grad_coef="*fp32", grad_raw="*bf16"),
    "transposed weights": weights(weight_gradient.TRANSPOSED_PAIRING),
    "merge gradient": (merge._merge_gradient, MERGE, TILE, POINTWISE),
    "filter adjoint": (upsampled._filter_adjoint, ADJOINT, {"PIXELS": 16, "CHANNELS": 128}, POINTWISE),
}


@pytest.mark.parametrize(("kernel", "pointers", "constants", "blocks"), KERNELS.values(), ids=KERNELS)
def test_compiles_for_an_h100(kernel, pointers, constants, blocks) -> None:
    compiled = compiled_for(H100, kernel, pointers, constants, blocks)
    assert compiled.metadata.shared <= SHARED_BYTES
    # A product on an H100 is a warpgroup's; the older instruction reaches half its speed.
    multiplies = kernel in (convolution._convolve, weight_gradient._weight_gradient)
    assert ("wgmma.mma_async" in compiled.asm["ptx"]) == multiplies
    assert "mma.sync" not in compiled.asm["ptx"]


@pytest.mark.parametrize("name", ["its gradient, stride 2", "1x1 gradient", "weights"])
def test_two_stages_fit_a_smaller_gpu_and_three_do_not(name: str) -> None:
    kernel, pointers, constants, blocks = KERNELS[name]
    shared = [
        compiled_for(SMALLER, kernel, pointers, constants, blocks._replace(num_stages=stages)).metadata.shared
        for stages in (2, 3)
    ]
    assert shared[0] <= SMALLER_SHARED_BYTES < shared[1]


@pytest.mark.parametrize(("room", "stages"), [(227 * 1024, 3), (163 * 1024, 3), (99 * 1024, 2)])
def test_stages_by_shared_memory(room: int, stages: int, monkeypatch) -> None:
    utils = SimpleNamespace(get_device_properties=lambda _: {"max_shared_mem": room})
    active = SimpleNamespace(utils=utils)
    monkeypatch.setattr(triton.runtime.driver, "_active", active)
    stages_on.cache_clear()
    assert stages_on(torch.device("cuda", 0)) == stages
    stages_on.cache_clear()
    assert stages_on(torch.device("cpu")) == 3


def compiled_for(target, kernel, pointers, constants, blocks):
    # An argument that is neither a number, a constant nor a given pointer is an optional tensor left out.
    optional = {"x_coef", "x_raw", "grad_coef", "grad_raw", "partial", "y_raw", "y_coef"} | FILTER.keys()
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants or (name in optional and name not in pointers):
            signature[name], values[index,] = "constexpr", constants.get(name)
            continue
        signature[name] = pointers.get(name, "i32")
        if name in pointers or name in COUNTS:
            attributes[index,] = [["tt.divisibility", 16]]
    options = {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}
    return triton.compile(ASTSource(kernel, signature, values, attributes), target=target, options=options)
