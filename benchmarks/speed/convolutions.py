"""Time every layer of the networks in every implementation of its convolution.

    python benchmarks/speed/convolutions.py                 # two minutes on two CPU cores
    python benchmarks/speed/convolutions.py --kernels       # on a GPU, with the Triton kernels

A layer convolves N images with N sets of kernels. Times the forward and backward pass of one layer at a time, with
padding, for the paper's network at 224×224 and those of appendix A.3 at 32×32. The implementations are one
convolution with N groups; N ordinary ones (on a GPU over several streams); a matrix product over patches; the package's
own choice; and on request the Triton kernels, which no GPU has run yet and which may end the run with a fault. For the
convolution of an upsampled tensor they are upsampling followed by a grouped convolution, and the package's two forms.
Values and gradients of each are first checked against plain convolutions in float64.

They take turns in rounds on the same random tensors; medians are printed with the range of the rounds. On a GPU the
operands are bf16, and each implementation is captured in a CUDA graph where that works, so launches are not timed. One
JSON record goes to benchmarks/results/ and is rewritten after each layer.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.config import DIPConfig
from dipdefense.engine import graphs, heap, ops, upsampling
from dipdefense.engine.folding import fold, unfold
from dipdefense.evaluation import circumstances
from dipdefense.files import write_atomically

_PRESETS = {"paper": 224, "architecture_1": 32, "architecture_2": 32}
_BATCHES = {"cpu": {224: 1, 32: 16}, "cuda": {224: 32, 32: 256}}
_ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.03}
_STREAMS = 8


class Layer(NamedTuple):
    """A convolution: its name, its widths, and the side of its input.

    Where the input is upsampled, the side is that after upsampling.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    side: int
    stride: int = 1
    upsampled: bool = False
    reads_noise: bool = False


Implementation = Callable[[Tensor, Tensor, Layer], Tensor]
"""(N, in, h, w) and (N, out, in, k, k) to (N, out, h', w')."""


def layers(config: DIPConfig, side: int) -> Iterator[Layer]:
    """All convolutions of a network for images of this size."""
    c, skips = config.channels, config.skip_channels
    for scale in range(config.scales_for(side, side)):
        here, inputs = -(-side // 2**scale), c if scale else config.input_channels
        yield Layer(f"down{scale}", inputs, c, 3, here, stride=2, reads_noise=not scale)
        yield Layer(f"same{scale}", c, c, 3, -(-here // 2))
        yield Layer(f"up{scale}", c, c, 3, here, upsampled=True)
        if skips:
            yield Layer(f"skip{scale}", inputs, skips, 1, here, reads_noise=not scale)
            yield Layer(f"up_skip{scale}", skips, c, 3, here)
        yield Layer(f"mix{scale}", c, c, 1, here)
    yield Layer("output", c, 3, 1, side)


def plain(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """Ordinary convolutions, one image after another.

    Each image is upsampled first, where the layer has that.
    """
    return torch.cat([_ordinary(x[i : i + 1], weight[i], layer) for i in range(len(x))])


def in_groups(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """One convolution with as many groups as images."""
    out = F.conv2d(fold(_padded(x, layer)), weight.flatten(0, 1), stride=layer.stride, groups=len(x))
    return unfold(out, len(x))


def on_streams(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """Ordinary convolutions, image i on stream i modulo their number."""
    current = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in range(_STREAMS)]  # type: ignore[no-untyped-call]
    for stream in streams:
        stream.wait_stream(current)
    out = []
    for i in range(len(x)):
        with torch.cuda.stream(streams[i % _STREAMS]):
            out.append(_ordinary(x[i : i + 1], weight[i], layer))
    for stream in streams:
        current.wait_stream(stream)
    return torch.cat(out)


def over_patches(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """A batched matrix product of the kernels with each image's patches."""
    sides = [-(-side // layer.stride) for side in x.shape[2:]]
    patches = x.flatten(2) if layer.kernel == 1 else F.unfold(_padded(x, layer), 3, stride=layer.stride)
    return torch.bmm(weight.flatten(2), patches).view(*weight.shape[:2], *sides)


def as_the_package(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """``dipdefense.engine.ops``."""
    if layer.upsampled:
        return ops.upsampled_convolution(x, _by_rows(weight), height=layer.side, width=layer.side)
    return ops.convolution(x, weight, stride=layer.stride)


def by_products(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """The package's form of the upsampled convolution for small maps."""
    return upsampling.convolve_dense(x, _by_rows(weight), layer.side, layer.side)


def transposed(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """The package's form of the upsampled convolution for large maps."""
    mirrored = weight.transpose(1, 2).flip(3, 4).flatten(0, 1)
    return unfold(upsampling.ConvolveTransposed.apply(fold(x), mirrored, layer.side, layer.side, len(x)), len(x))


class _InTriton(torch.autograd.Function):
    """The kernels, between tensors with the channels innermost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        from dipdefense.engine.kernels.convolution import convolve, forward_geometry
        from dipdefense.engine.kernels.tiles import Operand

        x, weight = x.permute(0, 2, 3, 1).contiguous(), weight.permute(0, 3, 4, 2, 1).flatten(1, 2).contiguous()
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        side = -(-layer.side // layer.stride)
        geometry = forward_geometry(layer.kernel, layer.stride)
        out, _ = convolve(Operand(x), weight, geometry, size=(side, side), slope=1.0)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        from dipdefense.engine.kernels.convolution import convolve, gradient_geometry
        from dipdefense.engine.kernels.tiles import Operand
        from dipdefense.engine.kernels.weight_gradient import convolution_pairing, weight_gradient

        x, weight = ctx.saved_tensors
        layer = ctx.layer
        grad = Operand(grads[0].permute(0, 2, 3, 1).contiguous())
        grad_weight = torch.empty_like(weight, dtype=torch.float32)
        weight_gradient(Operand(x), grad, grad_weight, convolution_pairing(layer.kernel, layer.stride), slope=1.0)
        grad_weight = grad_weight.view(len(x), layer.kernel, layer.kernel, layer.inputs, layer.outputs)
        grad_weight = grad_weight.permute(0, 4, 3, 1, 2).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        geometry = gradient_geometry(layer.kernel, layer.stride)
        grad_x, _ = convolve(grad, weight, geometry, size=(layer.side, layer.side), slope=1.0, backwards=True)
        return grad_x.permute(0, 3, 1, 2), grad_weight, None


def in_triton(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """``dipdefense.engine.kernels``."""
    return _InTriton.apply(x, weight, layer)  # type: ignore[no-any-return]


def implementations(layer: Layer, device: torch.device, *, kernels: bool) -> dict[str, Implementation]:
    """The implementations of a layer by name; the one that may fail is last."""
    found: dict[str, Implementation] = {"groups": in_groups}
    if layer.upsampled:
        found |= {"products": by_products, "transposed": transposed}
    else:
        found |= {"patches": over_patches, "one by one": plain}
    found["package"] = as_the_package
    if device.type == "cuda":
        found["streams"] = on_streams
    if kernels and not layer.upsampled:
        found["Triton"] = in_triton
    return found


def check(name: str, implementation: Implementation, layer: Layer, x: Tensor, weight: Tensor) -> float:
    """The largest error ‖difference‖ / ‖reference‖ in value or gradients.

    Only the first two images are compared.

    Raises:
        ValueError: the error is larger than rounding.
    """
    x, weight = x[:2], weight[:2]
    expected = plain(x.double(), weight.double(), layer)
    pull = torch.randn_like(expected).to(x.dtype)
    wanted = _passes(plain, x.double(), weight.double(), layer, pull.double())
    got = _passes(implementation, x, weight, layer, pull)
    error = max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True))
    if not error <= _ALLOWED[x.dtype]:
        raise ValueError(f"{name} is not the convolution of {layer.name}: off by {error:.1e}; it is not timed")
    return error


def measure(
    layer: Layer, everyone: Mapping[str, Implementation], x: Tensor, weight: Tensor, *, rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """By implementation, its error and its times by round.

    The times are of both passes, in milliseconds per image. On a GPU ``graph`` says whether the implementation was
    captured.
    """
    pull = torch.randn_like(plain(x, weight, layer))
    steps: dict[str, Callable[[], object]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, implementation in everyone.items():
        found[name] = {"error": check(name, implementation, layer, x, weight), "milliseconds": []}
        steps[name] = functools.partial(_passes, implementation, x, weight, layer, pull)
        if x.is_cuda:
            steps[name], found[name]["graph"] = _captured(steps[name])
    repeats = {name: max(1, int(seconds / rounds / len(steps) / _time(step, 1))) for name, step in steps.items()}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name]["milliseconds"].append(1000 * _time(step, repeats[name]) / len(x))
    return found


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure, write the record, print the tables, and return the record's path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="+", choices=list(_PRESETS), default=list(_PRESETS))
    parser.add_argument("--batch", type=int, help="images at once (default: by size and device)")
    parser.add_argument("--kernels", action="store_true", help="the Triton kernels too")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each layer, at least (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # of the streams, the graphs and the clock
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(given.seed)
    known = circumstances(device)
    path: Path = given.out / f"convolutions-{device.type}-{known['started'].split('+')[0].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"circumstances": known, "networks": {}}
    for network in given.networks:
        side = _PRESETS[network]
        count = given.batch or _BATCHES[device.type][side]
        rows: list[dict[str, Any]] = []
        record["networks"][network] = {"side": side, "batch": count, "layers": rows}
        for layer in layers(getattr(DIPConfig, network)(), side):
            here = -(-layer.side // 2) if layer.upsampled else layer.side
            # The package keeps a single large image with the channels innermost.
            layout = torch.channels_last if count == 1 and device.type == "cpu" else torch.contiguous_format
            x = torch.randn(count, layer.inputs, here, here, device=device).to(dtype, memory_format=layout)
            weight = torch.randn(count, layer.outputs, layer.inputs, layer.kernel, layer.kernel, device=device)
            everyone = implementations(layer, device, kernels=given.kernels)
            with heap.kept():
                found = measure(layer, everyone, x, weight.to(dtype), rounds=given.rounds, seconds=given.seconds)
            rows.append({"layer": layer._asdict(), "ways": found})
            write_atomically(path, json.dumps(record, indent=1) + "\n")
        print(text(network, record["networks"][network]), flush=True)
    print(f"written: {path}")
    return path


def text(network: str, measured: Mapping[str, Any]) -> str:
    """A table of milliseconds per image, by layer and implementation.

    The last line has the sums over all layers, of the package and of the fastest implementations.
    """
    lines = [f"{network}, {measured['side']}×{measured['side']}, batch {measured['batch']}: milliseconds an image"]
    names = list(dict.fromkeys(name for row in measured["layers"] for name in row["ways"]))
    lines.append(f"  {'':10}" + "".join(f"{name:>24}" for name in names))
    best = package = 0.0
    for row in measured["layers"]:
        times = {name: statistics.median(found["milliseconds"]) for name, found in row["ways"].items()}
        best += min(times.values())
        package += times["package"]
        cells = []
        for name in names:
            if name not in times:
                cells.append(f"{'–':>24}")
                continue
            rounds = row["ways"][name]["milliseconds"]
            mark = "*" if times[name] == min(times.values()) else " "
            cells.append(f"{f'{times[name]:.3g} [{min(rounds):.3g}, {max(rounds):.3g}]{mark}':>24}")
        lines.append(f"  {row['layer']['name']:10}" + "".join(cells))
    lines.append(f"  all layers by the package: {package:.4g}; each by its fastest implementation (*): {best:.4g}")
    return "\n".join(lines)


def _passes(implementation: Implementation, x: Tensor, weight: Tensor, layer: Layer, pull: Tensor) -> list[Tensor]:
    """The result and its gradients, without that of the noise, which nothing needs."""
    x, weight = x.detach().requires_grad_(not layer.reads_noise), weight.detach().requires_grad_()
    out = implementation(x, weight, layer)
    leaves = [leaf for leaf in (x, weight) if leaf.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, leaves, pull)]


def _ordinary(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    return F.conv2d(_padded(x, layer), weight, stride=layer.stride)


def _padded(x: Tensor, layer: Layer) -> Tensor:
    if layer.upsampled:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)[..., : layer.side, : layer.side]
    return F.pad(x, (1, 1, 1, 1), mode="reflect") if layer.kernel == 3 else x


def _by_rows(weight: Tensor) -> Tensor:
    """(N, out, in, rows, columns) in the layout of ``ops.upsampled_convolution``."""
    return weight.permute(0, 2, 4, 1, 3)


def _captured(step: Callable[[], object]) -> tuple[Callable[[], object], str]:
    """The step as a graph's replay, or unchanged with the reason."""
    replayed = graphs.Replayed(step, torch.device("cuda", torch.cuda.current_device()))
    try:
        for _ in range(3):
            replayed()
    except RuntimeError as error:
        return step, f"not captured: {str(error).splitlines()[0]}"
    return replayed, "captured"


def _time(step: Callable[[], object], repeats: int) -> float:
    """Mean seconds of a step."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


if __name__ == "__main__":
    main()
