"""``dipdefense doctor``: its proof can fail, its seconds are a purification's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from reference import ReferenceNet, reference_fit

from dipdefense import DIPConfig, DIPPurifier
from dipdefense.cli import costs, plain, proof
from dipdefense.cli.command import command
from dipdefense.cli.network import asked_for
from dipdefense.files import write_image

FAST = ["--config", "architecture-2", "--device", "cpu"]


def doctor(*words: object) -> dict:
    result = CliRunner().invoke(command, ["doctor", *FAST, "--json", *map(str, words)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_it_finds() -> None:
    found = doctor("--size", 32, "--iters", 5, "--measure", 0.1)
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["backend"].startswith("torch: ")
    assert found["backends"]["torch"] == "runs here"
    assert "NVIDIA GPU" in found["backends"]["cudagraphs"]
    assert [item["passed"] for item in found["proofs"]] == [True]
    assert [cost["images"] for cost in found["costs"]] == [1, 32]
    assert all(cost["seconds"] > 0 and 3 <= cost["measured"] <= 5 for cost in found["costs"])
    assert 0 < found["costs"][1]["expected"] < found["costs"][1]["free"]


def test_images_that_no_memory_holds_are_refused_before_any_fit(monkeypatch) -> None:
    monkeypatch.setattr("dipdefense.cli.examination.measure", lambda *_, **__: pytest.fail("fitted"))
    monkeypatch.setattr(DIPPurifier, "room_for", lambda *_: SimpleNamespace(each=2e9, free=1e9, at_once=0))
    result = CliRunner().invoke(command, ["doctor", *FAST])
    assert result.exit_code == 2
    assert "would take 2.0 GB, and 1.0 GB are free; give --size 128 or less" in result.output


def test_the_trial_of_backends_is_no_part_of_the_cost(monkeypatch) -> None:
    calls = []

    def spied(name: str) -> None:
        inner = getattr(DIPPurifier, name)

        def spy(self, *given, **named):
            calls.append(name)
            return inner(self, *given, **named)

        monkeypatch.setattr(DIPPurifier, name, spy)

    spied("backend_for")
    spied("reconstruct")
    doctor("--size", 32, "--iters", 3, "--measure", 0)
    assert calls == ["backend_for", "reconstruct"] * 2


def test_a_slow_first_iteration_counts_once(monkeypatch) -> None:
    now = iter((0.0, 0.5, 0.52, 0.54))
    monkeypatch.setattr(costs, "time", SimpleNamespace(monotonic=lambda: next(now)))
    options = {"config": "architecture-2", "device": "cpu", "precision": "fp32", "backend": "torch", "seed": 0}
    cost = costs.measure(asked_for(**options), side=32, iters=1000, images=1, budget=0)
    assert (cost.measured, cost.seconds) == (3, pytest.approx(0.5 + 999 * 0.02))


def test_bf16_is_proven_beside_fp32() -> None:
    found = doctor("--size", 32, "--iters", 3, "--precision", "bf16")
    assert [(item["precision"], item["passed"]) for item in found["proofs"]] == [("fp32", True), ("bf16", True)]


def test_as_text() -> None:
    words = ["doctor", "--device", "cpu", "--size", "32", "--iters", "3", "--measure", "0"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0
    for text in ("as the reference", "s an image (from 3 iterations)", "REDUCED SETTING", "fp32:", "MB planned of"):
        assert text in result.stdout


def test_the_proof_is_of_full_precision_on_a_gpu_too(monkeypatch) -> None:
    allowed = []
    reconstruct = proof.reconstruct

    def watched(*args, **given):
        allowed.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return reconstruct(*args, **given)

    monkeypatch.setattr(proof, "reconstruct", watched)
    # As NVIDIA's containers have it.
    torch.set_float32_matmul_precision("high")
    try:
        proof.prove(torch.device("cpu"), "fp32")
        assert allowed == [(False, "highest")]
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")
    finally:
        torch.set_float32_matmul_precision("highest")


CHANGES = {
    "learning_rate": 0.011, "leaky_slope": 0.25, "noise_std": 0.05, "norm_eps": 1e-3, "betas": (0.8, 0.999),
    "adam_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_the_proof_sees_a_change_of_any_number(monkeypatch, name: str) -> None:
    assert proof.prove(torch.device("cpu"), "fp32").passed

    def other(image, *, config: DIPConfig, **given):
        return plain.losses(image, config=dataclasses.replace(config, **{name: CHANGES[name]}), **given)

    monkeypatch.setattr(proof, "losses", other)
    assert not proof.prove(torch.device("cpu"), "fp32").passed
    result = CliRunner().invoke(command, ["doctor", *FAST, "--size", "32", "--iters", "1"])
    assert (result.exit_code, "NOT as the reference" in result.stdout) == (1, True)


@pytest.mark.parametrize("skips", [0, 2])
def test_the_plain_loop_is_the_tests_own_reference(skips: int) -> None:
    """Both in float64, from the plain loop's weights and noise."""
    config = DIPConfig(scales=2, channels=6, skip_channels=skips, input_channels=4)
    image, generator = torch.rand(3, 33, 40), torch.Generator().manual_seed(3)
    weights = plain._initial(config, 3, 2, generator)
    shape = (4, 33, 40)
    noise = torch.empty(shape).uniform_(0, config.input_scale, generator=generator).double()
    fresh = [torch.empty(shape).normal_(0, config.noise_std, generator=generator).double() for _ in range(3)]
    net = ReferenceNet(config, 3, 2).double()
    with torch.no_grad():
        for index, scale in enumerate(net.scales()):
            for name in ("skip", "down", "same", "up", "mix") if skips else ("down", "same", "up", "mix"):
                getattr(scale, name)[0].weight.copy_(weights[f"{name}{index}"])
        net.output.weight.copy_(weights["output"])
        net.output.bias.copy_(weights["bias"])
    run = reference_fit(image.double(), iterations=3, config=config, net=net, noise=noise, fresh=fresh)
    assert plain.losses(image, seed=3, config=config, iterations=3) == pytest.approx(run.losses, rel=1e-6)


@pytest.mark.slow
def test_the_seconds_are_those_of_a_purification(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.rand(3, 96, 96))
    words = ["purify", str(tmp_path / "a.png"), str(tmp_path / "out"), "--iters", "200", "--json", *FAST]
    ratios = []
    # The load of a machine changes from one minute to the next.
    for attempt in range(3):
        predicted = doctor("--size", 96, "--iters", 200, "--measure", 5)["costs"][0]["seconds"]
        result = CliRunner().invoke(command, [*words, "--seed", str(attempt), "--overwrite"])
        ratios.append(json.loads(result.stdout)["seconds"] / predicted)
    print("seconds of purify / those that doctor predicted:", [round(ratio, 2) for ratio in ratios])
    assert any(1 / 1.3 <= ratio <= 1.3 for ratio in ratios)
