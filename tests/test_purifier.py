"""The module: where it works, its gradient, and chunks that change no result."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_reconstruct import CLOSE
from torch import nn

import dipdefense.purifier as purifier_module
from dipdefense import DIPConfig, DIPPurifier, reconstruct
from dipdefense.checks import Request
from dipdefense.engine.memory import bytes_per_image, images_that_fit
from dipdefense.reconstruct import fit
from dipdefense.stopping import Variance


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32)


@pytest.fixture
def purifier(tiny: DIPConfig) -> DIPPurifier:
    return DIPPurifier(iters=3, config=tiny, seed=0)


@pytest.fixture
def classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def test_it_returns_the_output_of_the_last_iteration(purifier: DIPPurifier, images: torch.Tensor) -> None:
    expected = reconstruct(images, budgets=(3,), config=purifier.config, seed=0).images[0]
    assert torch.equal(purifier(images), expected)


def within(context):
    def call(purifier: DIPPurifier, images: torch.Tensor) -> torch.Tensor:
        with context():
            return purifier(images)

    return call


WAYS = {
    "no_grad": within(torch.no_grad),
    "inference_mode": within(torch.inference_mode),
    "autocast": within(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "eval": lambda purifier, images: purifier.eval()(images),
    "to": lambda purifier, images: purifier.to("cpu", torch.float64)(images),
    "deepcopy": lambda purifier, images: copy.deepcopy(purifier)(images),
    "pickle": lambda purifier, images: pickle.loads(pickle.dumps(purifier))(images),
    "sequential": lambda purifier, images: nn.Sequential(purifier, nn.Identity())(images),
    "data parallel": lambda purifier, images: nn.DataParallel(purifier)(images),
    "input that needs a gradient": lambda purifier, images: purifier(images.clone().requires_grad_()),
    "channels last": lambda purifier, images: purifier(images.contiguous(memory_format=torch.channels_last)),
    "default dtype float64": None,
    "default device": within(lambda: torch.device("meta")),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_works_wherever_it_is_called(way: str, purifier: DIPPurifier, images: torch.Tensor) -> None:
    expected = purifier(images)
    if way == "default dtype float64":
        torch.set_default_dtype(torch.float64)
        try:
            result = purifier(images)
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        result = WAYS[way](purifier, images)
    assert result.dtype == torch.float32
    assert torch.equal(result.detach(), expected)


def test_inference_tensors_are_accepted(purifier: DIPPurifier, images: torch.Tensor) -> None:
    with torch.inference_mode():
        result = purifier(images.clone())
    assert torch.equal(result, purifier(images))


def test_it_has_no_parameters_and_a_classifiers_checkpoint_still_loads(
    purifier: DIPPurifier, classifier: nn.Module, images: torch.Tensor
) -> None:
    classifier(images)
    assert not list(purifier.parameters())
    assert purifier.state_dict() == {}
    defended = nn.Sequential()
    defended.add_module("purifier", purifier)
    for name, module in classifier.named_children():
        defended.add_module(name, module)
    defended.load_state_dict(classifier.state_dict())
    assert defended(images).shape == (3, 5)


def test_the_gradient_is_the_identity(purifier: DIPPurifier, classifier: nn.Module, images: torch.Tensor) -> None:
    """BPDA: the gradient at the input is the classifier's at the purified image."""
    leaf = images.clone().requires_grad_()
    classifier(purifier(leaf)).logsumexp(dim=1).sum().backward()
    purified = purifier(images).requires_grad_()
    classifier(purified).logsumexp(dim=1).sum().backward()
    assert torch.equal(leaf.grad, purified.grad)
    assert leaf.grad.abs().max() > 0


def test_no_gradient_raises_with_an_explanation(tiny: DIPConfig, images: torch.Tensor) -> None:
    purifier = DIPPurifier(iters=1, config=tiny, gradient="none")
    result = purifier(images.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="straight-through"):
        result.sum().backward()


@pytest.mark.parametrize("chunk", [1, 2, 3, 8, "auto"])
def test_the_chunk_changes_nothing(tiny: DIPConfig, chunk: int | str) -> None:
    images = torch.rand(5, 3, 32, 32)
    whole = DIPPurifier(iters=4, config=tiny, seed=[1, 2, 3, 4, 5], batch_size=5)
    split = DIPPurifier(iters=4, config=tiny, seed=[1, 2, 3, 4, 5], batch_size=chunk)
    run, expected = (p.reconstruct(images, budgets=(2, 4)) for p in (split, whole))
    torch.testing.assert_close(run.images, expected.images, **CLOSE)
    torch.testing.assert_close(run.losses, expected.losses, rtol=0.02, atol=0)
    assert run.status == expected.status == ("ok",) * 5


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["gpu", "cpu"])
def test_out_of_memory_halves_the_chunk_and_goes_on(tiny: DIPConfig, monkeypatch, error: Exception) -> None:
    images = torch.rand(7, 3, 32, 32)
    sizes = []

    def limited(request: Request, *rest):
        sizes.append(len(request.images))
        if len(request.images) > 2:
            raise error
        return fit(request, *rest)

    monkeypatch.setattr(purifier_module, "fit", limited)
    purifier = DIPPurifier(iters=2, config=tiny, seed=list(range(7)), batch_size=7)
    result = purifier(images)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    expected = reconstruct(images, budgets=(2,), config=tiny, seed=list(range(7))).images[0]
    torch.testing.assert_close(result, expected, **CLOSE)


def test_memory_that_one_image_exceeds_is_an_error(tiny: DIPConfig, images: torch.Tensor, monkeypatch) -> None:
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(purifier_module, "fit", full)
    with pytest.raises(torch.OutOfMemoryError):
        DIPPurifier(iters=1, config=tiny)(images)


def test_other_errors_are_not_taken_for_lack_of_memory(tiny: DIPConfig, images: torch.Tensor, monkeypatch) -> None:
    calls = []

    def broken(request: Request, *rest):
        calls.append(len(request.images))
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(purifier_module, "fit", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        DIPPurifier(iters=1, config=tiny)(images)
    assert calls == [3]


def test_the_automatic_chunk_follows_free_memory(monkeypatch) -> None:
    config, images = DIPConfig.paper(), torch.empty(500, 3, 224, 224, device="meta")
    request = Request(images, (1,), config, (), torch.float32, "torch")
    one = bytes_per_image(config, 3, 224, 224)
    for free, expected in ((one // 2, 1), (10 * one, 6), (200 * one, 128), (1000 * one, 512)):
        monkeypatch.setattr("dipdefense.engine.memory._free_bytes", lambda device, free=free: free)
        assert images_that_fit(request) == expected


@pytest.mark.parametrize(
    ("backend", "operands", "side", "threads", "expected"),
    [
        ("torch", torch.float32, 224, 3, 1),
        ("native", torch.float32, 224, 3, 3),
        ("native", torch.bfloat16, 224, 3, 1),
        ("torch", torch.float32, 32, 3, 32),
        ("native", torch.float32, 32, 3, 30),
        ("native", torch.float32, 32, 64, 64),
    ],
)
def test_whole_native_iterations_have_an_image_for_each_thread(backend, operands, side, threads, expected) -> None:
    config, images = DIPConfig(scales=2, channels=16), torch.empty(500, 3, side, side)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert images_that_fit(Request(images, (1,), config, (), operands, backend)) == expected
    finally:
        torch.set_num_threads(before)


def test_a_diverging_image_is_named(images: torch.Tensor) -> None:
    config = DIPConfig(scales=2, channels=4, learning_rate=1e30)
    with pytest.warns(RuntimeWarning, match=r"images at \[0, 1, 2\] diverged"):
        result = DIPPurifier(iters=4, config=config, seed=0)(images)
    assert result.isnan().all()


def test_an_empty_batch(purifier: DIPPurifier) -> None:
    assert purifier(torch.rand(0, 3, 32, 32)).shape == (0, 3, 32, 32)


def test_progress_counts_every_iteration_of_every_image(tiny: DIPConfig, images: torch.Tensor, capsys) -> None:
    DIPPurifier(iters=4, config=tiny, batch_size=2, progress=True)(images)
    assert "12.0/12.0" in capsys.readouterr().err
    DIPPurifier(iters=4, config=tiny)(images)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("batch_size", "expected"), [(3, [3, 3]), (2, [2, 2, 1, 1])])
def test_every_iteration_is_told_with_its_images(tiny: DIPConfig, batch_size: int, expected: list[int]) -> None:
    told: list[int] = []
    purifier = DIPPurifier(2, config=tiny, batch_size=batch_size)
    purifier.reconstruct(torch.rand(3, 3, 32, 32), budgets=(2,), on_iteration=told.append)
    assert told == expected


def test_an_empty_batch_has_no_iteration_to_tell_of(tiny: DIPConfig) -> None:
    told: list[int] = []
    DIPPurifier(2, config=tiny).reconstruct(torch.rand(0, 3, 32, 32), budgets=(2,), on_iteration=told.append)
    assert told == []


def test_iterations_that_a_rule_spares_are_told_too(tiny: DIPConfig, images: torch.Tensor) -> None:
    told: list[int] = []
    purifier = DIPPurifier(9, config=tiny, seed=0, stopping=Variance(warm_up=1, patience=2))
    run = purifier.reconstruct(images, budgets=(9,), on_iteration=told.append)
    last = max(run.iterations)
    assert last < 9
    assert told == [3] * last + [3 * (9 - last)]
