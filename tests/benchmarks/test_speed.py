"""The speed benchmark on networks of a few channels: checks, turns and ratios."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from reference import ReferenceNet, reference_fit
from torch import Tensor, nn

sys.path.insert(0, str(ROOT / "benchmarks"))

import speed.timing
from speed import benchmark, trials
from speed.check import PUBLISHED, Contender, Errors, check
from speed.contenders import GRAPHS, KERNELS, between_convolutions, contenders, published_loop, untried
from speed.networks import Networks, PlainNet, grouped
from speed.timing import Cell, Setting, Stopwatch, measure, speedups
from speed.trials import must_learn, outcome, start

from dipdefense import DIPConfig
from dipdefense.reconstruct import Reconstruction

CPU = torch.device("cpu")
# Whatever compiler there is: nothing is compiled while tests are collected.
with pytest.MonkeyPatch.context() as _without_kernels:
    _without_kernels.setenv("DIPDEFENSE_NATIVE", "0")
    EVERYONE = contenders(CPU)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_smoke(device: str, tmp_path: Path, monkeypatch, capsys) -> None:
    command = f"benchmarks/speed --device {device} --sides 32 --channels 4 --batch-sizes 2 3 --rounds 2 --no-quality"
    everyone = contenders(torch.device(device))
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr(speed.timing, "MOST", 4)
    monkeypatch.setattr(benchmark, "peak_in_fresh_process", lambda *_, **__: 7.0)
    monkeypatch.setattr(benchmark, "_CEILINGS", {device: {"side": 64, "copied": 2**16}})
    path = benchmark.main([*sys.argv[1:], "--out", str(tmp_path)])
    record = json.loads(path.read_text())
    assert list(tmp_path.glob("*.png")) == [path.with_suffix(".png")]

    known = record["circumstances"]
    assert known["command"] == f"python {command}"
    assert known["hardware"]
    assert len(known["commit"]) >= 40 or "checkout" in known["commit"]
    assert torch.__version__.startswith(known["versions"]["torch"])
    assert record["arguments"]["seed"] == 0
    assert "out" not in record["arguments"]
    assert record["ceilings"]["fp32"].keys() == {"flops", "bytes"}
    (setting,) = record["settings"]
    assert (setting["side"], setting["config"]["channels"]) == (32, 4)
    assert setting["checks"].keys() == everyone.keys()

    rows = {(row["contender"], row["batch"]): row for row in record["results"]}
    assert rows.keys() == {(n, b) for n, c in everyone.items() for b in ((2, 3) if c.batched else (1,))}
    base = rows[PUBLISHED, 1]["seconds"]["rounds"]
    for row in rows.values():
        own = row["seconds"]["rounds"]
        assert len(own) == 2
        assert 3 <= row["iterations"] <= 4
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row["speedup"]["rounds"] == pytest.approx([b / o for b, o in zip(base, own, strict=True)])
        assert row["peak_memory_mib"] == 7 if device == "cpu" else row["peak_memory_mib"] > 0
        floor = setting["floor_seconds"][row["precision"]]
        assert row["share_of_floor"] * row["seconds"]["median"] == pytest.approx(floor)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for (name, batch), row in rows.items():
        cells = [*name.split(), str(batch), f"{row['seconds']['median']:.4g}"]
        assert cells in [line[: len(cells)] for line in printed]


def broken(**changes: object) -> Contender:
    return dataclasses.replace(EVERYONE["grouped"], name="broken", **changes)


def output_of(change: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Contender:
    """The grouped networks, but for a change of their forward pass."""

    def build(*arguments) -> Networks:
        networks = grouped(*arguments)
        return networks._replace(forward=lambda noise: change(networks.forward, noise))

    return broken(build=build)


def another_slope(config: DIPConfig, *rest) -> Networks:
    return grouped(dataclasses.replace(config, leaky_slope=0.8), *rest)


def padded_by_repetition(*arguments) -> Networks:
    networks = grouped(*arguments)
    for module in networks.forward.modules():
        if isinstance(module, nn.Conv2d) and module.padding_mode == "reflect":
            module.padding_mode = "replicate"
    return networks


def with_gradient(output: Tensor, factor: float) -> Tensor:
    return output.detach() + factor * (output - output.detach())


WRONG = {
    "another slope": broken(build=another_slope),
    "another padding": broken(build=padded_by_repetition),
    "one image's weights for all": broken(
        own=lambda stacked: {name: value[:1].expand_as(value).flatten(0, 1) for name, value in stacked.items()}
    ),
    "another image's noise": output_of(lambda forward, noise: forward(noise.flip(0))),
    "noise left out": output_of(lambda forward, noise: forward(torch.zeros_like(noise))),
    "gradients of a mean over the images": output_of(
        lambda forward, noise: with_gradient(forward(noise), 1 / len(noise))
    ),
    "NaN": output_of(lambda forward, noise: forward(noise) * torch.nan),
}


@pytest.mark.parametrize("name", EVERYONE)
@pytest.mark.parametrize("config", [DIPConfig(channels=5), DIPConfig(channels=16, skip_channels=0)], ids=["", "bare"])
def test_right_contenders_pass_the_check(name: str, config: DIPConfig) -> None:
    errors = check(EVERYONE[name], config, scales=3, device=CPU, seed=0)
    assert errors.output < 1e-5
    assert errors.gradient < 1e-2


@pytest.mark.parametrize("features", [(), ("avx512_bf16",)])
def test_the_compiled_kernels_pass_it(native, features, monkeypatch) -> None:
    monkeypatch.setattr("dipdefense.processor.features", lambda: frozenset(features))
    everyone = contenders(CPU)
    assert (everyone["dipdefense, native, bf16"].build is between_convolutions) == (not features)
    errors = check(everyone["dipdefense, native, fp32"], DIPConfig(channels=5), scales=3, device=CPU, seed=0)
    assert errors.output < 1e-5
    assert errors.gradient < 1e-2
    check(everyone["dipdefense, native, bf16"], DIPConfig(channels=5), scales=3, device=CPU, seed=0)


def test_bf16_passes_a_check_of_its_own_and_not_that_of_fp32() -> None:
    bf16 = dataclasses.replace(EVERYONE["dipdefense, fp32"], operands=torch.bfloat16)
    errors = check(bf16, DIPConfig(channels=16), scales=3, device=CPU, seed=0)
    assert errors.output > 1e-4
    rounded = output_of(lambda forward, noise: forward(noise.bfloat16().float()))
    with pytest.raises(ValueError, match="broken is not the published network"):
        check(rounded, DIPConfig(channels=16), scales=3, device=CPU, seed=0)


@pytest.mark.parametrize("contender", WRONG.values(), ids=WRONG)
def test_a_wrong_contender_is_refused(contender: Contender) -> None:
    with pytest.raises(ValueError, match=r"broken is not the published network: .* it is not timed"):
        check(contender, DIPConfig(channels=4), scales=2, device=CPU, seed=0)


def test_a_wrong_contender_ends_the_run_before_it_is_timed(tmp_path: Path, monkeypatch) -> None:
    published = EVERYONE[PUBLISHED]
    everyone = {PUBLISHED: published, "broken": WRONG["another slope"]}
    monkeypatch.setattr(benchmark, "contenders", lambda *_, **__: everyone)
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: pytest.fail("timed"))
    monkeypatch.setattr(benchmark, "_CEILINGS", {"cpu": {"side": 64, "copied": 2**16}})
    with pytest.raises(ValueError, match="broken is not the published network"):
        benchmark.main(["--sides", "32", "--channels", "4", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_one_that_may_fail_is_tried_first_and_then_left_out(tmp_path: Path, monkeypatch, capsys) -> None:
    dud = dataclasses.replace(WRONG["NaN"], name="dud", expendable=True)
    monkeypatch.setattr(benchmark, "contenders", lambda *_, **__: {PUBLISHED: EVERYONE[PUBLISHED], "dud": dud})
    tried = []
    monkeypatch.setattr(benchmark, "start", lambda contender, setting, batches, **_: tried.append(batches))
    monkeypatch.setattr(benchmark, "outcome", lambda trial, *, deadline: {"failed": "ValueError: no good"})
    monkeypatch.setattr(benchmark, "peak_in_fresh_process", lambda *_, **__: 7.0)
    monkeypatch.setattr(benchmark, "_CEILINGS", {"cpu": {"side": 64, "copied": 2**16}})
    monkeypatch.setattr(speed.timing, "MOST", 3)
    command = ["--sides", "32", "--channels", "4", "--batch-sizes", "3", "2", "--rounds", "1", "--out", str(tmp_path)]
    record = json.loads(benchmark.main(command).read_text())
    assert tried == [[2, 3]]
    (setting,) = record["settings"]
    assert setting["checks"]["dud"] == {"failed": "ValueError: no good"}
    assert [row["contender"] for row in record["results"]] == [PUBLISHED]
    assert "  not timed: dud: ValueError: no good\n" in capsys.readouterr().out


def test_one_that_found_no_memory_beside_the_others_is_tried_again_alone(monkeypatch) -> None:
    begun: list[str] = []
    results = {
        "small": [{"output": 0.1}],
        "large": [{"failed": "torch.OutOfMemoryError: CUDA out of memory."}, {"output": 0.2}],
    }
    monkeypatch.setattr(benchmark, "start", lambda contender, *_, **__: begun.append(contender.name) or contender.name)
    monkeypatch.setattr(benchmark, "outcome", lambda trial, *, deadline: results[trial].pop(0))
    everyone = {name: dataclasses.replace(EVERYONE["grouped"], name=name, expendable=True) for name in results}
    setting = Setting("s", 32, DIPConfig.architecture_2())
    found = benchmark.try_expendable(everyone, [setting], {"s": (1,)}, device=CPU, seed=0, seconds=1)
    assert begun == ["small", "large", "large"]
    assert found == {("s", "small"): {"output": 0.1}, ("s", "large"): {"output": 0.2}}


def test_too_large_a_batch_leaves_the_smaller_ones(monkeypatch) -> None:
    def learns(contender, config, *, batch, side, device):
        if batch > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trials, "check", lambda *_, **__: Errors(0.1, 0.2))
    monkeypatch.setattr(trials, "must_learn", learns)
    task = {"device": "cpu", "config": DIPConfig.architecture_2().to_json(), "contender": "grouped", "side": 32}
    most = 8
    assert trials._try(task | {"batches": [1, 8, 64], "seed": 0}) == {"output": 0.1, "gradient": 0.2}
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        trials._try(task | {"batches": [1, 8], "seed": 0})


TRIALS = {
    "passed": ("print('a warning'); print('{\"output\": 0.5}')", {"output": 0.5}),
    "raised": ("print(1); raise ValueError('no good')", {"failed": "ValueError: no good"}),
    "crashed": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {"failed": "ended by signal 11"}),
    "hung": ("import time; time.sleep(600)", {"failed": "its trial took too long"}),
}


@pytest.mark.parametrize(("code", "expected"), TRIALS.values(), ids=TRIALS)
def test_the_outcome_of_a_trial(code: str, expected: dict) -> None:
    trial = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = 0.1 if "sleep" in code else 60
    assert outcome(trial, deadline=time.monotonic() + limit) == expected
    assert trial.returncode is not None


def test_a_trial_in_a_process_of_its_own() -> None:
    trial = start(EVERYONE["grouped"], Setting("", 32, DIPConfig.architecture_2()), (), device=CPU, seed=0)
    assert outcome(trial, deadline=time.monotonic() + 300).keys() == {"output", "gradient"}


def test_run_by_its_path(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "speed"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("usage:"), done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", [GRAPHS, KERNELS])
def test_the_untried_pass_their_trials(name: str) -> None:
    contender = contenders(torch.device("cuda"), expendable=True)[name]
    trial = start(contender, Setting("", 32, DIPConfig.architecture_2()), (1, 16), device=torch.device("cuda"), seed=0)
    assert outcome(trial, deadline=time.monotonic() + 300).keys() == {"output", "gradient"}


def test_the_untried_are_there_if_asked_for() -> None:
    assert not {GRAPHS, KERNELS} & EVERYONE.keys()
    everyone = contenders(CPU, expendable=True)
    assert list(everyone)[-2:] == [name for name, contender in everyone.items() if contender.expendable]
    assert [contender.name for contender in untried()] == [GRAPHS, KERNELS]


@pytest.mark.parametrize("config", [DIPConfig.architecture_1(), DIPConfig.architecture_2()], ids=["1", "2"])
def test_a_trial_sees_whether_replays_learn(config: DIPConfig) -> None:
    sound = EVERYONE["dipdefense, fp32"]
    must_learn(sound, config, batch=2, side=32, device=CPU)

    def stuck(images: torch.Tensor, **options) -> Reconstruction:
        """The third iteration, over and over."""
        run = sound.fit(images, **options)
        return dataclasses.replace(run, losses=torch.cat([run.losses[:3], run.losses[2].expand(13, -1)]))

    with pytest.raises(ValueError, match="losses of a batch of 2 do not fall as they must"):
        must_learn(dataclasses.replace(sound, fit=stuck), config, batch=2, side=32, device=CPU)


def test_the_plain_network_and_its_loop_are_the_references(tiny: DIPConfig) -> None:
    config = dataclasses.replace(tiny, scales=None)
    image = torch.rand(3, 33, 36)
    torch.manual_seed(4)
    run = published_loop(image[None], budgets=(2, 4), config=config)
    torch.manual_seed(4)
    net = ReferenceNet(config, 3, 3)
    assert net.state_dict().keys() == PlainNet(config, 3, 3).state_dict().keys()
    torch.manual_seed(4)
    net = ReferenceNet(config, 3, 3)
    noise = torch.rand(4, 33, 36) * 0.1
    fresh = [torch.randn(1, 4, 33, 36)[0] / 30 for _ in range(4)]
    plain = reference_fit(image, iterations=4, config=config, net=net, noise=noise, fresh=fresh)
    torch.testing.assert_close(run.losses[:, 0], torch.tensor(plain.losses), rtol=1e-4, atol=0)
    torch.testing.assert_close(run.images[0, 0], plain.outputs[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(run.images[1, 0], plain.outputs[3], rtol=0, atol=1e-4)


def fake(name: str, log: list, seconds: float, clock: list, *, fails_from: int = 10**9) -> Contender:
    """Takes ``seconds`` an iteration and image by ``clock``, tenfold in the warm-up."""

    def fit(images: Tensor, *, budgets, config, on_iteration) -> None:
        log.append((name, len(images), images.sum().item()))
        if len(images) >= fails_from:
            raise torch.OutOfMemoryError("too large\nand more")
        for iteration in range(budgets[-1]):
            clock[0] += seconds * len(images) * (10 if iteration < 2 else 1)
            on_iteration()

    return Contender(name, grouped, lambda stacked: stacked, fit)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(speed.timing.time, "perf_counter", lambda: now[0])
    return now


def test_contenders_take_turns_on_fresh_images_and_the_steady_state_is_timed(clock) -> None:
    log: list = []
    cells = [Cell(fake(PUBLISHED, log, 0.4, clock), 1), Cell(fake("b", log, 0.1, clock), 2)]
    measure(Setting("", 32, DIPConfig()), cells, device=CPU, rounds=4, seconds=100, seed=0)
    assert [name for name, *_ in log] == [PUBLISHED, "b"] * 5
    assert len({pixels for *_, pixels in log}) == 10
    assert cells[0].seconds == pytest.approx([400] * 4)
    assert cells[1].seconds == pytest.approx([100] * 4)
    assert cells[1].iterations > cells[0].iterations > 3
    assert 80 < clock[0] < 100


def test_slow_contenders_get_few_iterations_and_hopeless_ones_none(clock) -> None:
    log: list = []
    slow, failing = fake("slow", log, 0.5, clock), fake("failing", log, 0.01, clock, fails_from=4)
    cells = [Cell(fake(PUBLISHED, log, 1.0, clock), 1)]
    cells += [Cell(contender, batch) for contender in (slow, failing) for batch in (2, 4, 8)]
    measure(Setting("", 32, DIPConfig()), cells, device=CPU, rounds=3, seconds=100, seed=0)
    published, slow2, slow4, slow8, failing2, failing4, failing8 = cells
    assert published.iterations == slow2.iterations == 3
    assert published.skipped is slow2.skipped is failing2.skipped is None
    assert "too slow: 2 s an iteration" in slow4.skipped
    assert "smaller batch was too slow" in slow8.skipped
    assert failing4.skipped == "failed: OutOfMemoryError: too large"
    assert "smaller batch failed" in failing8.skipped
    assert not slow4.seconds
    assert {(name, batch) for name, batch, _ in log}.isdisjoint({("slow", 8), ("failing", 8)})
    assert [len(values) for values in speedups(cells)] == [3, 3, 0, 0, 3, 0, 0]


def test_a_contender_that_fails_in_a_later_round_is_left_out_and_the_published_loop_must_not_fail(clock) -> None:
    log: list = []
    published, other = fake(PUBLISHED, log, 0.1, clock), fake("b", log, 0.1, clock)

    def fit(*arguments, **options) -> None:
        other.fit(*arguments, **options)
        if clock[0] > 50:
            raise RuntimeError("no more")

    cells = [Cell(published, 1), Cell(dataclasses.replace(other, fit=fit), 1)]
    measure(Setting("", 32, DIPConfig()), cells, device=CPU, rounds=4, seconds=100, seed=0)
    assert cells[1].skipped == "failed: RuntimeError: no more"
    assert [name for name, *_ in log].count("b") == 3
    assert [len(values) for values in speedups(cells)] == [4, 0]
    failing = Cell(fake(PUBLISHED, log, 0.1, clock, fails_from=1), 1)
    with pytest.raises(torch.OutOfMemoryError):
        measure(Setting("", 32, DIPConfig()), [failing], device=CPU, rounds=4, seconds=100, seed=0)


def test_only_one_that_may_fail_may_fail_in_any_way(clock) -> None:
    def fit(*_, **__) -> None:
        raise TypeError("out of resources")

    published, other = fake(PUBLISHED, [], 0.1, clock), fake("b", [], 0.1, clock)
    for expendable in (True, False):
        cells = [Cell(published, 1), Cell(dataclasses.replace(other, fit=fit, expendable=expendable), 1)]
        setting = Setting("", 32, DIPConfig())
        if expendable:
            measure(setting, cells, device=CPU, rounds=3, seconds=100, seed=0)
            assert cells[1].skipped == "failed: TypeError: out of resources"
        else:
            with pytest.raises(TypeError):
                measure(setting, cells, device=CPU, rounds=3, seconds=100, seed=0)


def test_ratios_are_taken_within_a_round() -> None:
    published, other = EVERYONE[PUBLISHED], EVERYONE["vmap"]
    cells = [
        Cell(other, 2, seconds=[1.0, 2.0, 8.0]),
        Cell(published, 1, seconds=[2.0, 8.0, 4.0]),
        Cell(other, 4, skipped="too slow"),
    ]
    assert speedups(cells) == [[2.0, 4.0, 0.5], [1.0, 1.0, 1.0], []]


def test_settings_are_the_papers_networks() -> None:
    found = benchmark.settings([224, 32], None)
    assert [(setting.side, setting.config) for setting in found] == [
        (224, DIPConfig.paper()),
        (32, DIPConfig.architecture_1()),
        (32, DIPConfig.architecture_2()),
    ]


def test_stopwatch_leaves_out_the_warm_up_and_the_last_iteration(clock) -> None:
    watch = Stopwatch(CPU, warm_up=2, iterations=3)
    for seconds in (50, 50, 1, 2, 3, 50):
        clock[0] += seconds
        watch()
    assert watch.seconds_an_iteration() == 2
