"""backend="auto": stand-ins for GPU backends are taken or rightly set aside."""

from __future__ import annotations

import dataclasses
import functools
import gc
import threading
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch

from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.checks import Request, check_request, explain
from dipdefense.engine import backends, trial
from dipdefense.engine.fitting import BACKENDS, ByTorch, Fitting


class StandIn(ByTorch):
    """Torch's operators, spoiled in one way.

    An iteration takes ``seconds``, and nothing else takes any time.
    """

    now = 0.0
    done: list[str]

    def __init__(self, fitting: Fitting, *, name: str, seconds: float, spoil: Callable | None = None) -> None:
        super().__init__(fitting)
        self.name, self.seconds, self.spoil, self.count = name, seconds, spoil, 0
        self.outputs, self.losses, self.target = fitting.outputs, fitting.losses, fitting.target
        self.networks, self.std = fitting.networks, fitting.networks.config.noise_std
        self.sampled = torch.randn(fitting.fixed_noise.shape, generator=torch.Generator().manual_seed(5)) * self.std
        if spoil is runs_out_of_memory:
            spoil(self)

    def __call__(self) -> None:
        self._count()
        if self.spoil in NOISES:
            self._noise.copy_(self.spoil(self, torch.randn(self._noise.shape, generator=self._generators[0])))
            self._run()
            return
        before = {name: parameter.detach().clone() for name, parameter in self.networks.named_parameters()}
        super().__call__()
        if self.spoil is not None:
            self.spoil(self, before)

    def on(self, noise: torch.Tensor) -> None:
        self._count()
        super().on(noise)

    def _count(self) -> None:
        self.count += 1
        StandIn.now += self.seconds
        StandIn.done.append(self.name)


def runs_out_of_memory(own: StandIn, before=None) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def raises_on_capture(own: StandIn, before) -> None:
    if own.count == 3:
        raise RuntimeError("operation not permitted when stream is capturing")


def is_wrong_in_the_third(own: StandIn, before, image: int = 0) -> None:
    if own.count == 3:
        own.outputs[image] += 0.1
        own.losses.copy_((own.outputs - own.target).square().mean(dim=(1, 2, 3)))


def is_wrong_for_the_last_image(own: StandIn, before) -> None:
    is_wrong_in_the_third(own, before, image=-1)


def is_too_good_by_less_than_outputs_may_be_off(own: StandIn, before) -> None:
    own.outputs += 0.015 * (own.target - own.outputs).sign()
    own.losses.copy_((own.outputs - own.target).square().mean(dim=(1, 2, 3)))


def has_another_loss(own: StandIn, before) -> None:
    if own.count == 4:
        own.losses[-1] *= 1.001


def gives_nan(own: StandIn, before) -> None:
    if own.count > 1:
        own.outputs.fill_(torch.nan)
        own.losses.fill_(torch.nan)


def never_updates(own: StandIn, before) -> None:
    with torch.no_grad():
        for name, parameter in own.networks.named_parameters():
            parameter.copy_(before[name])


def updates_a_layer_the_other_way(own: StandIn, before) -> None:
    with torch.no_grad():
        parameter = own.networks.get_parameter("same1_weight")
        parameter.copy_(2 * before["same1_weight"] - parameter)


def updates_twice_as_far(own: StandIn, before) -> None:
    with torch.no_grad():
        for name, parameter in own.networks.named_parameters():
            parameter += parameter - before[name]


def same_noise_at_every_iteration(own: StandIn, noise: torch.Tensor) -> torch.Tensor:
    return own.sampled


def same_noise_for_every_image(own: StandIn, noise: torch.Tensor) -> torch.Tensor:
    return (noise[:1] * own.std).expand_as(noise)


def same_noise_in_every_channel(own: StandIn, noise: torch.Tensor) -> torch.Tensor:
    return (noise[:, :1] * own.std).expand_as(noise)


def half_the_noise(own: StandIn, noise: torch.Tensor) -> torch.Tensor:
    return noise * own.std / 2


def shifted_noise(own: StandIn, noise: torch.Tensor) -> torch.Tensor:
    return noise * own.std + own.std / 4


NOISES = {
    same_noise_at_every_iteration: "noise of different iterations is correlated by",
    same_noise_for_every_image: "noise of different images is correlated by",
    same_noise_in_every_channel: "noise of different parts of an image is correlated by",
    half_the_noise: "noise's standard deviation is off by",
    shifted_noise: "noise's mean is",
}
REFUSED = NOISES | {
    raises_on_capture: "it raised RuntimeError: operation not permitted when stream is capturing",
    runs_out_of_memory: "it ran out of memory",
    is_wrong_in_the_third: r"outputs at iteration 3 are off by 1\.0e-01",
    is_wrong_for_the_last_image: r"outputs at iteration 3 are off by 1\.0e-01",
    is_too_good_by_less_than_outputs_may_be_off: "losses at iteration 1 are off by",
    has_another_loss: "losses at iteration 4 are not the errors of its outputs",
    gives_nan: "losses at iteration 2 are not the errors of its outputs",
    never_updates: "update at iteration 1 is 0.00 times as long",
    updates_a_layer_the_other_way: r"updates of same1_weight point elsewhere: their cosine is -1\.00",
    updates_twice_as_far: "update at iteration 1 is 2.00 times as long",
}


@pytest.fixture
def auto(monkeypatch, tiny: DIPConfig):
    """The request of a run that chooses among stand-ins.

    They are given by name, each with its seconds an iteration and how it is spoiled.
    """
    monkeypatch.setattr(StandIn, "now", 0.0)
    monkeypatch.setattr(StandIn, "done", [], raising=False)
    monkeypatch.setattr(trial, "clock", lambda device: StandIn.now)
    monkeypatch.setattr(backends, "_trials", {})

    def request(iterations: int = 1000, precision: str = "fp32", count: int = 2, **others) -> Request:
        for name, (seconds, spoil) in {"torch": (1.0, None), **others}.items():
            builder = functools.partial(StandIn, name=name, seconds=seconds, spoil=spoil)
            monkeypatch.setitem(BACKENDS, name, builder)
        monkeypatch.setattr(backends, "available", lambda device, config: tuple(others))
        asked = check_request(
            torch.rand(count, 3, 16, 17),
            budgets=(iterations,), config=tiny, seed=3, precision=precision, backend="torch",
        )  # fmt: skip
        # "auto" is left to be chosen on an NVIDIA GPU alone.
        object.__setattr__(asked, "backend", "auto")
        return asked

    return request


TAKEN = {
    "half the time": ({"half": (0.5, None)}, "half"),
    "the faster of two": ({"half": (0.5, None), "fast": (0.25, None)}, "fast"),
    "in whatever order": ({"fast": (0.25, None), "half": (0.5, None)}, "fast"),
    "slower": ({"slow": (2.0, None)}, "torch"),
    "hardly faster": ({"same": (0.97, None)}, "torch"),
    "none": ({}, "torch"),
}


@pytest.mark.parametrize(("others", "taken"), TAKEN.values(), ids=TAKEN)
def test_the_fastest_that_is_right_is_taken(auto, others, taken) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.chosen(auto(**others)) == taken


def test_in_bf16_too(auto) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.chosen(auto(precision="bf16", half=(0.5, None))) == "half"


@pytest.mark.parametrize(("spoil", "reason"), REFUSED.items(), ids=[spoil.__name__ for spoil in REFUSED])
def test_one_that_fails_is_set_aside_with_one_warning(auto, spoil: Callable, reason: str) -> None:
    request = auto(precision="bf16", fast=(0.25, spoil))
    with pytest.warns(RuntimeWarning, match=f'sets "fast" aside on cpu .*: (its )?{reason}') as caught:
        assert backends.chosen(request) == "torch"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.chosen(request) == "torch"


def test_one_that_fails_does_not_stop_the_others(auto) -> None:
    with pytest.warns(RuntimeWarning):
        assert backends.chosen(auto(wrong=(0.25, gives_nan), half=(0.5, None))) == "half"


def test_of_many_images_the_first_and_the_last_are_compared(auto) -> None:
    with pytest.warns(RuntimeWarning, match="outputs at iteration 3"):
        assert backends.chosen(auto(count=11, fast=(0.25, is_wrong_for_the_last_image))) == "torch"


def test_trials_cost_at_most_three_per_cent_of_a_long_run_and_are_held_once(auto) -> None:
    request = auto(half=(0.5, None), fast=(0.25, None))
    backends.chosen(request)
    done = list(StandIn.done)
    assert backends.chosen(request) == "fast"
    assert StandIn.done == done
    # A stand-in captures nothing.
    assert len(done) + 2 == trial.iterations(2) == 29 <= 0.03 * 1000
    assert done.count("half") == done.count("fast") == 7


def test_another_number_of_images_is_another_trial(auto) -> None:
    backends.chosen(auto(half=(0.5, None)))
    held = len(StandIn.done)
    backends.chosen(auto(half=(0.5, None), count=3))
    assert len(StandIn.done) == 2 * held


def explain_a_gpu(monkeypatch) -> str:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return explain("cuda:0")["backend"]


def test_a_reduction_is_tried_at_the_size_of_its_networks(auto) -> None:
    request = auto(half=(0.5, None))
    request = dataclasses.replace(request, config=dataclasses.replace(request.config, reduction=2))
    assert backends.chosen(request) == "half"
    assert [kind.shape for kind in backends._trials] == [(2, 3, 8, 9)]


def test_a_run_too_short_to_gain_takes_torchs_operators_whatever_was_found_before(auto, monkeypatch) -> None:
    assert backends.chosen(auto(iterations=backends.SHORTEST - 1, half=(0.5, None))) == "torch"
    assert StandIn.done == []
    assert backends.chosen(auto(iterations=backends.SHORTEST, half=(0.5, None))) == "half"
    assert backends.chosen(auto(iterations=backends.SHORTEST - 1, half=(0.5, None))) == "torch"
    assert f"{backends.SHORTEST} iterations" in explain_a_gpu(monkeypatch)


def test_an_empty_batch_is_not_tried(auto) -> None:
    assert backends.chosen(auto(count=0, half=(0.5, None))) == "torch"
    assert StandIn.done == []


def test_where_torchs_operators_run_out_of_memory_nothing_is_found(auto, monkeypatch) -> None:
    request = auto(half=(0.5, None))
    with monkeypatch.context() as patch:
        patch.setitem(
            BACKENDS, "torch", functools.partial(StandIn, name="torch", seconds=1.0, spoil=runs_out_of_memory)
        )
        with pytest.warns(UserWarning, match=r"ran out of memory with 2 images at once; torch's operators are used"):
            assert backends.chosen(request) == "torch"
    assert backends.chosen(request) == "half"


def test_a_gpu_that_a_trial_left_unusable_is_no_reason_to_go_on(auto, monkeypatch) -> None:
    def release(device) -> None:
        if "fast" in StandIn.done:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(trial, "release", release)
    with pytest.raises(RuntimeError, match=r'"fast" left cpu unusable to this process; start another one and use'):
        backends.chosen(auto(fast=(0.25, raises_on_capture)))


def test_no_global_generator_is_touched_and_no_seed_meets_another_network(auto, tiny: DIPConfig) -> None:
    request, state = auto(half=(0.5, None)), torch.get_rng_state()
    untried = Fitting(request, "torch").networks.get_parameter("same0_weight")
    backends.chosen(request)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(Fitting(request, "half").networks.get_parameter("same0_weight"), untried)


def test_threads_share_one_trial(auto) -> None:
    request, found = auto(half=(0.5, None)), []
    threads = [threading.Thread(target=lambda: found.append(backends.chosen(request))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["half"] * 3
    assert len(StandIn.done) == trial.iterations(1) - 1


def test_on_a_cpu_it_is_torchs_operators_untried(tiny: DIPConfig, monkeypatch) -> None:
    monkeypatch.setattr(trial, "prove", None)
    monkeypatch.setattr(trial, "time_plain", None)
    run = reconstruct(torch.rand(1, 3, 32, 32), budgets=(60,), config=tiny, seed=0)
    assert run.backend == "torch"


def test_the_interpreters_kernels_are_not_worth_a_trial(monkeypatch) -> None:
    monkeypatch.setattr(backends, "check_backend", lambda *_: None)
    assert backends.available(torch.device("cuda:0")) == ("cudagraphs", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.available(torch.device("cuda:0")) == ("cudagraphs",)


def test_the_purifier_chooses_once_for_all_chunks(tiny: DIPConfig, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("dipdefense.purifier.chosen", lambda request: asked.append(len(request.images)) or "torch")
    DIPPurifier(1, config=tiny, batch_size=2)(torch.rand(5, 3, 32, 32))
    assert asked == [2]


def test_a_dropped_fit_leaves_nothing_to_the_collector(tiny: DIPConfig) -> None:
    request = check_request(
        torch.rand(2, 3, 32, 32), budgets=(2,), config=tiny, seed=0, precision="fp32", backend="torch"
    )
    gc.disable()
    try:
        fitting = Fitting(request, "torch")
        fitting()
        networks = weakref.ref(fitting.networks)
        del fitting
        assert networks() is None
    finally:
        gc.enable()


def test_a_table_never_records_auto(tiny: DIPConfig, monkeypatch) -> None:
    """The backend is chosen for the table's batch and size, as part of its identity."""
    from dipdefense.evaluation.defences import deep_image_prior

    shapes = []
    monkeypatch.setattr("dipdefense.purifier.chosen", lambda request: shapes.append(request.images.shape) or "triton")
    defence = deep_image_prior((60,), config=tiny, shape=(3, 32, 40), batch=2)
    assert defence.settings["backend"] == "triton"
    assert shapes == [(2, 3, 32, 40)]
