"""backend="auto": stand-ins for the backends of a GPU are taken or set aside for the right reason."""

from __future__ import annotations

import warnings

import pytest
import torch

from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.checks import Request, check_request
from dipdefense.engine import backends
from dipdefense.engine.fitting import Fitting


class StandIn:
    """Torch's operators under another name, spoiled as the name says. Time is counted in calls."""

    now = 0.0
    started: list[str]

    def __init__(self, request: Request, backend: str) -> None:
        StandIn.started.append(backend)
        self.fitting, self.backend, self.count = Fitting(request, "torch"), backend, 0
        self.outputs, self.losses = self.fitting.outputs, self.fitting.losses
        self.states = [generator.get_state() for generator in self.fitting._generators]
        if backend == "runs out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def __call__(self) -> None:
        self.count += 1
        StandIn.now += {"torch": 1.0, "slow": 2.0, "fast": 0.25}.get(self.backend, 0.5)
        if self.backend == "raises on capture" and self.count == 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        if self.backend == "same noise":
            for generator, state in zip(self.fitting._generators, self.states, strict=True):
                generator.set_state(state)
        self.fitting()
        if self.backend == "wrong in the third" and self.count == 3:
            self.outputs.mul_(0.98)
        if self.backend == "wrong loss" and self.count == 4:
            self.losses[-1] *= 1.05
        if self.backend == "NaN" and self.count > 1:
            self.losses.fill_(float("nan"))


@pytest.fixture
def auto(monkeypatch, tiny: DIPConfig):
    """Backends to try beside torch's operators; returns the request of a run that chooses among them."""
    monkeypatch.setattr(StandIn, "now", 0.0)
    monkeypatch.setattr(StandIn, "started", [], raising=False)
    monkeypatch.setattr(backends, "start", StandIn)
    monkeypatch.setattr(backends, "clock", lambda device: StandIn.now)
    monkeypatch.setattr(backends, "_trials", {})

    def request(*names: str, iterations: int = 1000, precision: str = "fp32", count: int = 2) -> Request:
        monkeypatch.setattr(backends, "available", lambda device: names)
        # A GPU's request on this machine: "auto" is what is left to be chosen.
        monkeypatch.setattr("torch.version.cuda", "13.0")
        asked = check_request(
            torch.rand(count, 3, 32, 32),
            budgets=(iterations,),
            config=tiny,
            seed=3,
            precision=precision,
            backend="torch",
        )
        object.__setattr__(asked, "backend", "auto")
        return asked

    return request


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("names", "taken"),
    [(("half",), "half"), (("half", "fast"), "fast"), (("fast", "half"), "fast"), (("slow",), "torch"), ((), "torch")],
    ids=str,
)
def test_the_fastest_that_is_right_is_taken(auto, names, taken, precision) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.chosen(auto(*names, precision=precision)) == taken


REFUSED = {
    "wrong in the third": "outputs differ by .* at iteration 3",
    "wrong loss": "loss differs by .* at iteration 4",
    "raises on capture": "RuntimeError: operation not permitted when stream is capturing",
    "runs out of memory": "OutOfMemoryError: CUDA out of memory",
    "NaN": "loss is not finite at iteration 2",
    "same noise": r"fresh noise moves the outputs .*e-\d+ to .* times as much",
}


@pytest.mark.parametrize(("name", "reason"), REFUSED.items(), ids=REFUSED)
def test_one_that_fails_is_set_aside_with_one_warning(auto, name: str, reason: str) -> None:
    request = auto(name)
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        assert backends.chosen(request) == "torch"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.chosen(request) == "torch"


def test_one_that_fails_does_not_stop_the_others(auto) -> None:
    with pytest.warns(RuntimeWarning):
        assert backends.chosen(auto("NaN", "half")) == "half"


def test_a_trial_costs_at_most_three_per_cent_of_a_long_run_and_is_held_once(auto) -> None:
    request = auto("half", "fast")
    backends.chosen(request)
    started, calls = list(StandIn.started), StandIn.now
    assert backends.chosen(request) == "fast"
    assert (StandIn.started, StandIn.now) == (started, calls)
    # Calls of each, from the time that each takes.
    per_backend = backends._COMPARED + backends._TIMED
    total = per_backend + backends._NOISY["torch"] + 2 * (per_backend + backends._NOISY["other"])
    assert calls == 9 * 1.0 + 10 * 0.5 + 10 * 0.25
    assert total == 29 <= 0.03 * 1000


def test_another_number_of_images_is_another_trial(auto) -> None:
    backends.chosen(auto("half"))
    held = len(StandIn.started)
    backends.chosen(auto("half", count=3))
    assert len(StandIn.started) == 2 * held


def test_short_runs_and_empty_batches_are_not_tried(auto) -> None:
    assert backends.chosen(auto("half", iterations=49)) == "torch"
    assert backends.chosen(auto("half", count=0)) == "torch"
    assert StandIn.started == []


def test_no_global_generator_is_touched(auto) -> None:
    request, state = auto("half"), torch.get_rng_state()
    backends.chosen(request)
    assert torch.equal(torch.get_rng_state(), state)


def test_on_a_cpu_it_is_torchs_operators_untried(tiny: DIPConfig, monkeypatch) -> None:
    monkeypatch.setattr(backends, "start", None)
    run = reconstruct(torch.rand(1, 3, 32, 32), budgets=(60,), config=tiny, seed=0)
    assert run.backend == "torch"


def test_the_purifier_chooses_once_for_all_chunks(auto, tiny: DIPConfig, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("dipdefense.purifier.chosen", lambda request: asked.append(len(request.images)) or "torch")
    DIPPurifier(1, config=tiny, batch_size=2)(torch.rand(5, 3, 32, 32))
    assert asked == [2]


def test_a_table_never_records_auto(auto, tiny: DIPConfig, monkeypatch) -> None:
    """The backend is chosen for the batch and the size that the table will fit, and belongs to its identity."""
    from dipdefense.evaluation.defences import deep_image_prior

    shapes = []
    monkeypatch.setattr("dipdefense.purifier.chosen", lambda request: shapes.append(request.images.shape) or "triton")
    defence = deep_image_prior((60,), config=tiny, shape=(3, 32, 40), batch=2)
    assert defence.settings["backend"] == "triton"
    assert shapes == [(2, 3, 32, 40)]
