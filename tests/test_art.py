"""Both defences inside ART: inputs, parameters, gradients, attacks and costs."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

import art.config
import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    BasicIterativeMethod,
    FastGradientMethod,
    NewtonFool,
    ProjectedGradientDescent,
    ShadowAttack,
    SquareAttack,
    ZooAttack,
)
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from torch import nn

from dipdefense.art import DIPPreprocessor, RandomizationPreprocessor
from dipdefense.config import DIPConfig
from dipdefense.purifier import DIPPurifier
from dipdefense.randomization import RandomResizePad

TINY = DIPConfig(scales=2, channels=4, skip_channels=2, input_channels=4)
CLASSES = 4
EPS = 8 / 255


def dip(**settings: Any) -> DIPPreprocessor:
    return DIPPreprocessor(**{"iters": 2, "config": TINY, "precision": "fp32", **settings})


BOTH = pytest.mark.parametrize(
    "defence", [pytest.param(dip, id="dip"), pytest.param(RandomizationPreprocessor, id="randomisation")]
)


def images(count: int = 2, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, height, width), dtype=np.float32)


def labels(count: int = 2) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[np.arange(count) % CLASSES]


def network() -> nn.Module:
    """A classifier that takes any size, sharp enough for a small step to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))
        with torch.no_grad():
            model[-1].weight.mul_(30)
    return model.eval()


def classifier(*defences: Any, **settings: Any) -> PyTorchClassifier:
    model = network()
    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        input_shape=(3, 32, 32),
        nb_classes=CLASSES,
        **{"clip_values": (0.0, 1.0), "preprocessing_defences": list(defences), **settings},
    )


def assert_alike(got: np.ndarray, wanted: np.ndarray, *, within: float) -> None:
    """On average: rounding may turn the sign of a first Adam step and move pixels."""
    assert got.shape == wanted.shape
    assert np.abs(got.astype(np.float64) - wanted).mean() < within


@pytest.fixture(autouse=True)
def _seeded_attacks() -> None:
    """ART's attacks sample from NumPy's global generator."""
    np.random.seed(0)


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each reconstruction held at once, in order."""
    held: list[int] = []
    module = sys.modules["dipdefense.reconstruct"]
    genuine = module.Fitting

    def spy(request: Any, *rest: Any) -> Any:
        held.append(len(request.images))
        return genuine(request, *rest)

    monkeypatch.setattr(module, "Fitting", spy)
    return held


@BOTH
def test_flags_follow_a_test_time_defence(defence: Callable[..., Any]) -> None:
    plain, turned = defence(), defence(apply_fit=True, apply_predict=False)
    assert (plain.is_fitted, plain.apply_fit, plain.apply_predict) == (True, False, True)
    assert (turned.apply_fit, turned.apply_predict) == (True, False)


def test_call_is_the_purifier() -> None:
    x = images()
    expected = DIPPurifier(2, config=TINY, seed=3, precision="fp32")(torch.from_numpy(x))
    np.testing.assert_array_equal(dip(seed=3)(x)[0], expected.numpy())


def test_call_is_the_randomisation() -> None:
    x = images()
    expected = RandomResizePad(seed=3)(torch.from_numpy(x))
    np.testing.assert_array_equal(RandomizationPreprocessor(seed=3)(x)[0], expected.numpy())


@BOTH
def test_layouts_agree(defence: Callable[..., Any]) -> None:
    x = images(height=32, width=40)
    first = defence(seed=0)(x)[0]
    last = defence(seed=0, channels_first=False)(x.transpose(0, 2, 3, 1))[0]
    assert_alike(last.transpose(0, 3, 1, 2), first, within=1e-4)


@BOTH
@pytest.mark.parametrize(
    "clip_values",
    [
        pytest.param((0, 255), id="bytes"),
        pytest.param([-1.0, 1.0], id="symmetric"),
        pytest.param(np.array([0.0, 4.0], dtype=np.float32), id="as-classifiers-keep-it"),
        pytest.param(
            (np.array([-2.0, -1.0, 0.0]).reshape(3, 1, 1), np.array([2.0, 1.0, 0.5]).reshape(3, 1, 1)),
            id="per-channel",
        ),
    ],
)
def test_any_range_is_rescaled_and_back(defence: Callable[..., Any], clip_values: Any) -> None:
    x, (low, high) = images(), clip_values
    expected = defence(seed=0)(x)[0] * (high - low) + low
    rescaled = defence(seed=0, clip_values=clip_values)((x * (high - low) + low).astype(np.float32))[0]
    assert_alike(rescaled, expected, within=1e-3 * float(np.mean(np.subtract(high, low))))


@BOTH
@pytest.mark.parametrize(
    ("dtype", "out"),
    [("float16", "float16"), ("float64", "float32"), ("uint8", "float32"), ("int8", "float32")],
)
def test_dtypes(defence: Callable[..., Any], dtype: str, out: str) -> None:
    low = -128 if dtype == "int8" else 0
    x = np.round(images() * 255)
    defended = defence(seed=0, clip_values=(low, low + 255))((x + low).astype(dtype))[0]
    expected = defence(seed=0)(x / np.float32(255))[0] * 255 + low
    assert defended.dtype == out
    assert_alike(defended, expected, within=1.0 if dtype == "float16" else 0.1)


@BOTH
@pytest.mark.parametrize("y", [None, labels(), np.arange(2), ["cat", "dog"]], ids=["none", "hot", "index", "names"])
def test_labels_pass_through(defence: Callable[..., Any], y: Any) -> None:
    assert defence()(images(), y)[1] is y


@BOTH
@pytest.mark.parametrize("shape", [(2, 4), (3, 32, 32), (2, 5, 3, 32, 32)], ids=["tabular", "unbatched", "video"])
def test_only_batches_of_images(defence: Callable[..., Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Unrecognized input dimension"):
        defence()(np.zeros(shape, dtype=np.float32))


@BOTH
@pytest.mark.parametrize("channels_first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("kind", [np.array, list, tuple])
def test_one_value_a_channel_stands_on_the_channels_axis(
    defence: Callable[..., Any], channels_first: bool, kind: Any
) -> None:
    low, high = [-2.0, -1.0, 0.0], [2.0, 1.0, 0.5]
    column = [np.array(bound).reshape(3, 1, 1) for bound in (low, high)]
    x = (images() * (column[1] - column[0]) + column[0]).astype(np.float32)
    expected = defence(seed=0, clip_values=column)(x)[0]
    to, back = ((0, 1, 2, 3), (0, 1, 2, 3)) if channels_first else ((0, 2, 3, 1), (0, 3, 1, 2))
    same = defence(seed=0, clip_values=(kind(low), kind(high)), channels_first=channels_first)
    assert_alike(same(x.transpose(to))[0].transpose(back), expected, within=1e-3)


@BOTH
@pytest.mark.parametrize("shape", [(2,), (32, 32), (3, 32, 32), (4, 1, 1), (1, 1, 3)], ids=str)
def test_clip_values_that_do_not_go_with_the_images(defence: Callable[..., Any], shape: tuple[int, ...]) -> None:
    bounds = (np.zeros(shape), np.ones(shape))
    with pytest.raises(
        ValueError, match=r"clip_values must be numbers or have one value a channel, got shape .*\(3, 32"
    ):
        defence(clip_values=bounds)(images())


@BOTH
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(defence: Callable[..., Any], value: float) -> None:
    x = images() * 255
    x[1, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"finite, but NaN or infinity is in the images at \[1\]"):
        defence(clip_values=(0, 255))(x)


@BOTH
@pytest.mark.parametrize(
    "x",
    [None, "cat.png", [[["a"]]], images().astype(complex), images() > 0.5, images().astype(object)],
    ids=["none", "path", "text", "complex", "bool", "object"],
)
def test_what_is_no_array_of_numbers_is_named(defence: Callable[..., Any], x: Any) -> None:
    with pytest.raises(TypeError, match="x must be an array of real numbers"):
        defence()(x)


@BOTH
@pytest.mark.parametrize(
    "change",
    [lambda x: x[:, :, :, ::-1], lambda x: x.astype(">f4"), lambda x: x.tolist(), torch.from_numpy],
    ids=["flipped", "big-endian", "list", "tensor"],
)
def test_arrays_of_any_order_are_taken(defence: Callable[..., Any], change: Callable[..., Any]) -> None:
    x = images()
    plain = np.ascontiguousarray(change(x), dtype=np.float32)
    np.testing.assert_array_equal(defence(seed=0)(change(x))[0], defence(seed=0)(plain)[0])


@BOTH
def test_another_scale_is_warned_of(defence: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="most of the images' values lie far outside .* and are clipped"):
        defence()(images() * 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        defence(clip_values=(0, 255))(images() * 260 - 2)


@BOTH
def test_a_step_out_of_the_range_is_clipped_and_keeps_its_gradient(defence: Callable[..., Any]) -> None:
    x = images() * 1.8 - 0.4
    np.testing.assert_array_equal(defence(seed=0)(x)[0], defence(seed=0)(x.clip(0, 1))[0])
    outside = torch.from_numpy(np.where(images() < 0.5, -0.3, 1.3).astype(np.float32)).requires_grad_()
    defence(seed=0).forward(outside)[0].sum().backward()
    assert outside.grad is not None
    assert (outside.grad > 0).float().mean() > 0.7  # nearest-neighbour resizing leaves some pixels out


@BOTH
def test_an_empty_batch_stays_empty(defence: Callable[..., Any]) -> None:
    assert len(defence()(images(0))[0]) == 0


@BOTH
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_a_float32_model_takes_what_art_does_not_cast(defence: Callable[..., Any], dtype: str) -> None:
    """HopSkipJump and BoundaryAttack query in float64, which fails without a defence."""
    x = np.round(images() * 255).astype(dtype)
    wide = classifier(defence(seed=0, clip_values=(0, 255)), clip_values=(0, 255))
    np.testing.assert_array_equal(wide.predict(x), wide.predict(x.astype(np.float32)))


BAD_COMMON = [
    pytest.param({"clip_values": (0, "x")}, "clip_values must be the", id="clip-values-of-text"),
    pytest.param({"clip_values": "01"}, "clip_values must be the", id="clip-values-as-text"),
    pytest.param({"clip_values": 1}, "clip_values must be the", id="one-clip-value"),
    pytest.param({"clip_values": (0,)}, "clip_values must be the", id="half-a-pair"),
    pytest.param({"clip_values": (0, 10**400)}, "clip_values must be the", id="absurd-clip-values"),
    pytest.param({"clip_values": (np.zeros(2), np.ones(3))}, "clip_values must be the", id="bounds-of-two-shapes"),
    pytest.param({"device_type": "tpu"}, 'device_type must be "gpu" or "cpu"', id="device-type"),
    pytest.param({"clip_values": (0, 1, 2)}, "clip_values must be the", id="three-clip-values"),
    pytest.param({"clip_values": None}, "clip_values must be the", id="no-clip-values"),
    pytest.param({"clip_values": (1, 0)}, "min < max", id="reversed-clip-values"),
    pytest.param({"clip_values": (0, np.inf)}, "finite", id="endless-clip-values"),
    pytest.param({"clip_values": (np.zeros(3), np.array([1, 0, 1]))}, "min < max", id="one-empty-range"),
    pytest.param({"channels_first": "yes"}, "channels_first must be", id="channels-first"),
    pytest.param({"seed": -1}, "seed", id="negative-seed"),
    pytest.param({"seed": [0.5]}, "seed", id="fractional-seed"),
    pytest.param({"seed": "0"}, "seed", id="seed-as-text"),
]
BAD_DIP = [
    pytest.param({"iters": 0}, "iters must be", id="no-iterations"),
    pytest.param({"iters": 2.5}, "iters must be", id="fractional-iterations"),
    pytest.param({"batch_size": 0}, "batch_size", id="no-batch"),
    pytest.param({"precision": "fp8"}, "precision", id="unknown-precision"),
    pytest.param({"backend": "cuda"}, "backend", id="unknown-backend"),
]
BAD = [pytest.param(dip, *case.values, id=f"dip-{case.id}") for case in BAD_COMMON + BAD_DIP] + [
    pytest.param(RandomizationPreprocessor, *case.values, id=f"randomisation-{case.id}") for case in BAD_COMMON
]


@pytest.mark.parametrize(("defence", "bad", "message"), BAD)
def test_bad_parameters_raise_and_change_nothing(
    defence: Callable[..., Any], bad: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        defence(**bad)
    valid = defence()
    before = dict(vars(valid))
    with pytest.raises((ValueError, TypeError), match=message):
        valid.set_params(apply_fit=True, **bad)
    assert vars(valid) == before


@BOTH
def test_flags_are_checked_when_set(defence: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="apply_predict must be True or False"):
        defence().set_params(apply_predict=1)


@BOTH
def test_unknown_parameters_raise(defence: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"no parameters \['iterations'\]; it has \["):
        defence().set_params(iterations=500)


@BOTH
def test_set_params_is_a_new_defence(defence: Callable[..., Any]) -> None:
    changes = {"seed": 1, "clip_values": (0, 4), "channels_first": False, "apply_fit": True, "apply_predict": False}
    changes |= {"device_type": "cpu"}
    if defence is dip:
        changes |= {"iters": 3, "config": DIPConfig(scales=2, channels=3), "batch_size": 1, "precision": "auto"}
        changes |= {"backend": "torch", "stopping": "trend"}
    preprocessor = defence(seed=0)
    assert set(changes) == set(preprocessor.params)
    preprocessor.set_params(**changes)
    assert {name: getattr(preprocessor, name) for name in changes} == changes
    x = images().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(preprocessor(x)[0], type(preprocessor)(**changes)(x)[0])
    assert "apply_predict=False" in repr(preprocessor)


def test_the_backend_reaches_the_reconstruction() -> None:
    with pytest.raises(ValueError, match='backend="triton" needs'):
        dip(backend="triton")(images())


@BOTH
def test_seed_none_differs_at_every_call_and_an_integer_never(defence: Callable[..., Any]) -> None:
    x = images(1, 64, 64)
    fresh, fixed = defence(), defence(seed=5)
    assert not np.array_equal(fresh(x)[0], fresh(x)[0])
    np.testing.assert_array_equal(fixed(x)[0], fixed(x)[0])


@BOTH
def test_loss_gradient_is_the_chain_rule_through_the_forward(defence: Callable[..., Any]) -> None:
    """Through DIP, it is the classifier's gradient at the purified image.

    Through the randomisation, it is the true gradient of the same sample.
    """
    x, y = images(), labels()
    x_torch = torch.from_numpy(x).requires_grad_()
    if defence is dip:
        inputs = torch.from_numpy(dip(seed=0)(x)[0]).requires_grad_()
        wanted = inputs
    else:
        inputs, wanted = RandomResizePad(seed=0)(x_torch), x_torch
    loss = nn.functional.cross_entropy(network()(inputs), torch.from_numpy(y.argmax(1)))
    (expected,) = torch.autograd.grad(loss, wanted)
    gradient = classifier(defence(seed=0)).loss_gradient(x, y)
    assert np.abs(gradient).max() > 0
    np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-4, atol=1e-7)


@BOTH
def test_loss_gradient_takes_channels_last_and_other_ranges(defence: Callable[..., Any]) -> None:
    class ChannelsLast(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return network()(x.permute(0, 3, 1, 2) / 255)

    x, y = images(), labels()
    wide = PyTorchClassifier(
        ChannelsLast(),
        loss=nn.CrossEntropyLoss(),
        input_shape=(32, 32, 3),
        nb_classes=CLASSES,
        channels_first=False,
        clip_values=(0, 255),
        preprocessing_defences=[defence(seed=0, clip_values=(0, 255), channels_first=False)],
    )
    gradient = wide.loss_gradient((x * 255).transpose(0, 2, 3, 1), y).transpose(0, 3, 1, 2)
    expected = classifier(defence(seed=0)).loss_gradient(x, y)
    assert_alike(gradient * 255, expected, within=0.02 * float(np.abs(expected).mean()))


@BOTH
@pytest.mark.parametrize(("label", "rows"), [(None, CLASSES), (1, 1), (np.array([2, 0]), 1)], ids=["all", "one", "own"])
def test_class_gradient(defence: Callable[..., Any], label: Any, rows: int) -> None:
    gradient = classifier(defence(seed=0)).class_gradient(images(), label=label)
    assert gradient.shape == (2, rows, 3, 32, 32)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=(2, 3, 4)) > 0).all()


@pytest.mark.parametrize(
    ("apply_fit", "apply_predict", "fitted", "predicted"),
    [(False, True, [], [2]), (True, False, [2], []), (True, True, [2], [2])],
    ids=["predict", "fit", "both"],
)
def test_flags_decide_where_it_is_applied(
    chunks: list[int], apply_fit: bool, apply_predict: bool, fitted: list[int], predicted: list[int]
) -> None:
    art_classifier = classifier(dip(apply_fit=apply_fit, apply_predict=apply_predict))
    art_classifier.fit(images(), labels(), nb_epochs=1)
    assert chunks == fitted
    chunks.clear()
    art_classifier.predict(images())
    assert chunks == predicted


def test_the_defence_runs_before_mean_and_std() -> None:
    x, mean, std = images(), 0.4, 0.25
    standardised = classifier(dip(seed=0), preprocessing=(mean, std)).predict(x)
    by_hand = network()((torch.from_numpy(dip(seed=0)(x)[0]) - mean) / std)
    np.testing.assert_allclose(standardised, by_hand.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_predict_never_holds_more_than_the_chunk(chunks: list[int]) -> None:
    assert classifier(dip(batch_size=2)).predict(images(6), batch_size=6).shape == (6, CLASSES)
    assert chunks == [2, 2, 2]


@pytest.mark.parametrize(
    ("attack", "settings", "y", "calls"),
    [
        pytest.param(FastGradientMethod, {}, labels(1), 1, id="fgsm"),
        pytest.param(FastGradientMethod, {}, None, 2, id="fgsm-without-labels"),
        pytest.param(BasicIterativeMethod, {"max_iter": 10}, labels(1), 12, id="bim"),
        pytest.param(BasicIterativeMethod, {"max_iter": 10}, None, 13, id="bim-without-labels"),
        pytest.param(BasicIterativeMethod, {"max_iter": 10, "targeted": True}, labels(1), 11, id="bim-targeted"),
    ],
)
def test_what_an_attack_costs(
    chunks: list[int], attack: Any, settings: dict[str, Any], y: np.ndarray | None, calls: int
) -> None:
    if attack is BasicIterativeMethod:
        settings = {"eps_step": EPS / 8, "verbose": False, **settings}
    attack(classifier(dip()), eps=EPS, **settings).generate(images(1), y)
    assert len(chunks) == calls


def test_class_gradient_purifies_once_even_beside_numpy_preprocessors(chunks: list[int]) -> None:
    """ART's default ``estimate_gradient`` would run the defence for every class."""
    beside_numpy = classifier(dip(seed=0), preprocessing=StandardisationMeanStd(mean=0.4, std=0.25))
    gradient = beside_numpy.class_gradient(images())
    assert chunks == [2]
    in_torch = classifier(dip(seed=0), preprocessing=(0.4, 0.25)).class_gradient(images())
    np.testing.assert_allclose(gradient, in_torch, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("channels_first", [True, False], ids=["first", "last"])
def test_the_randomisations_gradient_beside_numpy_preprocessors(channels_first: bool) -> None:
    """On the same sample ``estimate_gradient`` gives the gradients of torch.

    ART asks it for the loss and for every class.
    """
    x, y = images(), labels()
    defence = RandomizationPreprocessor(seed=0)
    in_torch = classifier(defence, preprocessing=(0.4, 0.25))
    beside_numpy = classifier(defence, preprocessing=StandardisationMeanStd(mean=0.4, std=0.25))
    for gradients in (
        lambda c: c.class_gradient(x),
        lambda c: c.class_gradient(x, label=1),
        lambda c: c.loss_gradient(x, y),
    ):
        np.testing.assert_allclose(gradients(beside_numpy), gradients(in_torch), rtol=1e-3, atol=1e-6)
    layout = (0, 1, 2, 3) if channels_first else (0, 2, 3, 1)
    last = RandomizationPreprocessor(seed=0, channels_first=channels_first, clip_values=(0, 2))
    grad = np.random.default_rng(1).random((2, 5, 3, 35, 35), dtype=np.float32)
    moved = grad.transpose((0, 1, *(axis + 1 for axis in layout[1:])))
    each = np.stack([defence.estimate_gradient(x, grad[:, row]) for row in range(5)], axis=1)
    found = last.estimate_gradient(2 * x.transpose(layout), moved)
    np.testing.assert_allclose(found, each.transpose((0, 1, *(axis + 1 for axis in layout[1:]))), rtol=1e-5)


STEPS = {"eps": EPS, "eps_step": EPS / 4, "max_iter": 2, "verbose": False}


@BOTH
@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        pytest.param(FastGradientMethod, {"eps": EPS}, id="fgsm"),
        pytest.param(BasicIterativeMethod, STEPS, id="bim"),
        pytest.param(BasicIterativeMethod, {**STEPS, "targeted": True}, id="bim-targeted"),
        pytest.param(ProjectedGradientDescent, {**STEPS, "num_random_init": 1}, id="pgd"),
        pytest.param(SquareAttack, {"eps": EPS, "max_iter": 3, "verbose": False}, id="square"),
    ],
)
def test_arts_attacks_run_through_the_defence(
    defence: Callable[..., Any], attack: Any, settings: dict[str, Any]
) -> None:
    x = images(3)
    defended = classifier(defence())
    y = np.eye(CLASSES, dtype=np.float32)[defended.predict(x).argmax(1)]
    target = np.roll(y, 1, axis=1) if settings.get("targeted") else y
    adversarial = attack(defended, **settings).generate(x, target)
    assert adversarial.shape == x.shape
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert 0 < np.abs(adversarial - x).max() <= EPS + 1e-6


@BOTH
@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        pytest.param(NewtonFool, {"max_iter": 3}, id="newtonfool"),
        pytest.param(
            ZooAttack, {"max_iter": 2, "nb_parallel": 4, "use_resize": False, "binary_search_steps": 1}, id="zoo"
        ),
        pytest.param(ShadowAttack, {"nb_steps": 2, "batch_size": 1}, id="shadow"),
    ],
)
def test_attacks_may_step_out_of_the_range(
    defence: Callable[..., Any], attack: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessor, least, most = defence(seed=0), [], []
    genuine = type(preprocessor).forward

    def spy(self: Any, x: torch.Tensor, y: Any = None) -> Any:
        least.append(x.min().item())
        most.append(x.max().item())
        return genuine(self, x, y)

    monkeypatch.setattr(type(preprocessor), "forward", spy)
    # Beside black and white pixels every step leads out.
    x = images(1).round() if attack is ZooAttack else images(1)
    adversarial = attack(classifier(preprocessor), verbose=False, **settings).generate(x, labels(1))
    assert np.isfinite(adversarial).all()
    assert max(most) > 1 or min(least) < 0


@BOTH
def test_attacks_on_a_fixed_sample_gain(defence: Callable[..., Any]) -> None:
    """A usable gradient raises the defended loss on the sample it was taken from."""
    # After two iterations an output hardly depends on the image; after ten an attack has something to gain.
    settings = {"iters": 10} if defence is dip else {}
    x, defended = images(4), classifier(defence(seed=0, **settings))
    y = np.eye(CLASSES, dtype=np.float32)[defended.predict(x).argmax(1)]
    adversarial = BasicIterativeMethod(defended, **{**STEPS, "max_iter": 4}).generate(x, y)
    assert defended.compute_loss(adversarial, y).mean() > defended.compute_loss(x, y).mean()


def copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@BOTH
@pytest.mark.parametrize("duplicate", [copied, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copies_defend_alike(
    defence: Callable[..., Any],
    duplicate: Callable[[Any], Any],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(art.config, "ART_DATA_PATH", str(tmp_path))
    x, original = images(), classifier(defence(seed=0))
    np.testing.assert_array_equal(duplicate(defence(seed=0))(x)[0], defence(seed=0)(x)[0])
    np.testing.assert_allclose(duplicate(original).predict(x), original.predict(x), rtol=1e-5)


def test_a_model_of_one_size_only_refuses_the_randomised_images() -> None:
    flat = PyTorchClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES)),
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 32, 32),
        nb_classes=CLASSES,
        preprocessing_defences=[RandomizationPreprocessor()],
    )
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        flat.predict(images())


@pytest.mark.parametrize("attack", ["foolbox-LinfPGD", "torchattacks-FGSM", "torchattacks-PGD", "torchattacks-EOTPGD"])
def test_other_libraries_attack_the_sequential(attack: str) -> None:
    library, name = attack.split("-")
    attacks = pytest.importorskip(library)
    defended = nn.Sequential(DIPPurifier(2, config=TINY, precision="fp32"), network()).eval()
    x, y = torch.from_numpy(images()), torch.arange(2)
    if library == "foolbox":
        model = attacks.PyTorchModel(defended, bounds=(0, 1), device="cpu")
        adversarial = attacks.attacks.LinfPGD(steps=2)(model, x, y, epsilons=EPS)[1]
    else:
        steps = {"PGD": {"steps": 2}, "EOTPGD": {"steps": 2, "eot_iter": 2}}.get(name, {})
        adversarial = getattr(attacks, name)(defended, eps=EPS, **steps)(x, y)
    moved = (adversarial - x).abs().amax(dim=(1, 2, 3))
    assert adversarial.isfinite().all()
    assert (moved > 0).all()
    assert (moved <= EPS + 1e-6).all()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(defended(x), y), x)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.gpu
@BOTH
def test_on_a_gpu(defence: Callable[..., Any]) -> None:
    x, y = images(), labels()
    on_gpu = classifier(defence(seed=0))
    assert on_gpu.device.type == "cuda"
    assert defence().forward(torch.from_numpy(x).cuda())[0].is_cuda
    assert not defence(device_type="gpu").forward(torch.from_numpy(x))[0].is_cuda
    assert on_gpu.predict(x).shape == (2, CLASSES)
    assert np.isfinite(defence(seed=0)(x)[0]).all()
    adversarial = BasicIterativeMethod(on_gpu, **STEPS).generate(x, y)
    assert 0 < np.abs(adversarial - x).max() <= EPS + 1e-6
