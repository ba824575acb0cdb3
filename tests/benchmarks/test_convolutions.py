"""The layer benchmark checks every implementation before timing and records all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from speed import convolutions
from speed.convolutions import Layer

from dipdefense import DIPConfig
from dipdefense.engine.network import SkipNets

_IN_TRITON = """
import sys, torch
sys.path.insert(0, "benchmarks")
from speed.convolutions import Layer, check, in_triton
torch.manual_seed(0)
for layer in (Layer("a", 5, 6, 3, 9), Layer("b", 5, 6, 3, 9, stride=2), Layer("c", 5, 6, 1, 8, reads_noise=True)):
    x, weight = torch.randn(2, 5, layer.side, layer.side), torch.randn(2, 6, 5, layer.kernel, layer.kernel)
    print(check("Triton", in_triton, layer, x, weight))
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_smoke(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "--networks architecture_2 --batch 2 --rounds 2 --seconds 0.01"
    path = convolutions.main([*command.split(), "--device", device, "--out", str(tmp_path)])
    record = json.loads(path.read_text())
    assert record["circumstances"]["hardware"]
    measured = record["networks"]["architecture_2"]
    assert (measured["side"], measured["batch"]) == (32, 2)
    names = {f"{row['layer']['name']}_weight" for row in measured["layers"]}
    generators, cpu = [torch.Generator()], torch.device("cpu")
    networks = SkipNets(DIPConfig.architecture_2(), image_channels=3, scales=3, generators=generators, device=cpu)
    assert names == {name for name, _ in networks.named_parameters() if name.endswith("weight")}
    for row in measured["layers"]:
        special = (
            {"products", "transposed"} if row["layer"]["name"] in ("up0", "up1", "up2") else {"patches", "one by one"}
        )
        names = {"groups", "package"} | special
        assert row["ways"].keys() == names | ({"streams"} if device == "cuda" else set())
        for found in row["ways"].values():
            assert found["error"] < 1e-4 if device == "cpu" else found["error"] < 0.03
            assert len(found["milliseconds"]) == 2
            assert min(found["milliseconds"]) > 0
    printed = capsys.readouterr().out
    assert all(row["layer"]["name"] in printed for row in measured["layers"])


@pytest.mark.parametrize("side", [11, 12])
@pytest.mark.parametrize("count", [1, 3])
def test_every_way_is_the_same_convolution(side: int, count: int) -> None:
    for layer in (
        Layer("down", 5, 4, 3, side, stride=2, reads_noise=True),
        Layer("same", 4, 4, 3, side),
        Layer("mix", 4, 6, 1, side),
        Layer("up", 4, 6, 3, side, upsampled=True),
    ):
        here = -(-side // 2) if layer.upsampled else side
        x = torch.randn(count, layer.inputs, here, here)
        weight = torch.randn(count, layer.outputs, layer.inputs, layer.kernel, layer.kernel)
        for name, implementation in convolutions.implementations(layer, torch.device("cpu"), kernels=False).items():
            assert convolutions.check(name, implementation, layer, x, weight) < 1e-5


def test_another_convolution_is_not_timed() -> None:
    layer, x, weight = Layer("same", 4, 4, 3, 9), torch.randn(2, 4, 9, 9), torch.randn(2, 4, 4, 3, 3)
    with pytest.raises(ValueError, match="wrong is not the convolution of same"):
        convolutions.check("wrong", lambda x, w, layer: 1.01 * convolutions.plain(x, w, layer), layer, x, weight)
    with pytest.raises(ValueError, match="not timed"):
        convolutions.check("NaN", lambda x, w, layer: float("nan") * convolutions.plain(x, w, layer), layer, x, weight)


def test_the_triton_way_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", _IN_TRITON], env=environment, cwd=ROOT, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stderr:
        pytest.skip("this version of Triton cannot interpret with this version of NumPy; Triton 3.6 needs NumPy < 2.4")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 3
