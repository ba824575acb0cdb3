"""Xie et al. 2017: the samples, the pixels, the gradient, and where it must work."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipdefense.randomization import RandomizationDefence, RandomResizePad, padded_size, random_resize_pad


def box(image: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of what is not padding in (C, H', W').

    They are exact for images without mid-grey.
    """
    inside = (image != 0.5).any(dim=0)
    rows, columns = inside.any(dim=1).nonzero().flatten(), inside.any(dim=0).nonzero().flatten()
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left


def by_hand(image: Tensor, defended: Tensor) -> Tensor:
    """Resize and pad one image (C, H, W) with torch, into the box of `defended`."""
    top, left, height, width = box(defended.detach())
    bottom, right = defended.shape[1] - top - height, defended.shape[2] - left - width
    resized = F.interpolate(image[None], size=(height, width), mode="nearest")
    return F.pad(resized, (left, right, top, bottom), value=0.5)[0]


@pytest.mark.parametrize(
    ("size", "padded"),
    [((299, 299), (331, 331)), ((224, 224), (248, 248)), ((32, 32), (35, 35)), ((299, 224), (331, 248))],
    ids=str,
)
def test_padded_size(size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert padded_size(*size) == padded
    assert random_resize_pad(torch.rand(1, 3, *size)).shape == (1, 3, *padded)


def test_every_pattern_of_the_method_occurs_and_none_besides() -> None:
    """At 32 pixels, scaled from 299: r in [32, 35) and (35 - r + 1)² places each."""
    patterns = [box(image) for image in random_resize_pad(torch.zeros(1500, 1, 32, 32), seed=range(1500))]
    allowed = {(top, left, r, r) for r in range(32, 35) for top in range(35 - r + 1) for left in range(35 - r + 1)}
    assert set(patterns) == allowed
    counts = np.bincount([size for *_, size in patterns])[32:]
    assert (abs(counts - 500) < 5 * math.sqrt(1500 * 1 / 3 * 2 / 3)).all()  # r is uniform, whatever the places


@pytest.mark.parametrize(("side", "below"), [(224, 248), (299, 331)])
def test_sizes_at_the_paper_s_resolutions(side: int, below: int) -> None:
    sizes = {box(random_resize_pad(torch.zeros(1, 1, side, side), seed=seed)[0])[2] for seed in range(300)}
    assert sizes == set(range(side, below))


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (33, 57)])
def test_rectangles_keep_their_proportions(height: int, width: int) -> None:
    sizes = set()
    for image in random_resize_pad(torch.zeros(200, 1, height, width), seed=range(200)):
        _, _, resized_height, resized_width = box(image)
        sizes.add((resized_height, resized_width))
        assert abs(resized_height / height - resized_width / width) <= 0.5 / min(height, width) + 1e-9
    longer = max(height, width)
    assert {max(size) for size in sizes} == set(range(longer, max(padded_size(height, width))))


def test_pixels_are_the_nearest_and_the_padding_is_mid_grey() -> None:
    image = torch.rand(3, 29, 40)
    defended = random_resize_pad(image[None], seed=4)[0]
    top, left, height, width = box(defended)
    rows, columns = np.arange(height) * 29 // height, np.arange(width) * 40 // width  # exact, in integers
    expected = np.full(defended.shape, 0.5, dtype=np.float32)
    expected[:, top : top + height, left : left + width] = image.numpy()[:, rows][:, :, columns]
    np.testing.assert_array_equal(defended.numpy(), expected)


def test_gradient_is_the_one_of_torch_s_resize_and_padding() -> None:
    images = torch.rand(3, 3, 12, 17, requires_grad=True)
    defended = random_resize_pad(images, seed=range(3))
    weights = torch.rand_like(defended)
    (gradient,) = torch.autograd.grad((defended * weights).sum(), images)
    expected = torch.stack([by_hand(image, one) for image, one in zip(images, defended, strict=True)])
    assert torch.equal(expected, defended)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), images)
    assert torch.equal(gradient, expected_gradient)
    assert gradient.ne(0).all()


def test_gradient_agrees_with_finite_differences() -> None:
    images = 0.1 + 0.8 * torch.rand(2, 2, 6, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(RandomResizePad(seed=(0, 1)), images.requires_grad_())


def linear_classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


@pytest.mark.parametrize("kind", ["layer", "averaged"])
def test_alone_and_in_a_batch_are_the_same(kind: str) -> None:
    classifier = linear_classifier()
    images, seeds = torch.rand(4, 3, 16, 16), [5, 6, 7, 8]

    def defended(images: Tensor, seed: object) -> Tensor:
        if kind == "layer":
            return RandomResizePad(seed=seed)(images)
        return RandomizationDefence(classifier, passes=2, seed=seed)(images)

    together = defended(images, seeds)
    for i in range(4):
        torch.testing.assert_close(defended(images[i : i + 1], [seeds[i]])[0], together[i])
        torch.testing.assert_close(defended(images[i : i + 1], seeds[i])[0], together[i])
    order = [2, 0, 3, 1]
    torch.testing.assert_close(defended(images[order], [seeds[i] for i in order]), together[order])
    same = defended(images[:1].expand(3, -1, -1, -1), 5)
    torch.testing.assert_close(same, same[:1].expand_as(same))


def test_every_image_has_its_own_sample() -> None:
    images = torch.rand(1, 3, 64, 64).expand(12, -1, -1, -1)
    assert len({box(image) for image in RandomResizePad()(images)}) > 6


def test_a_seed_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first = random_resize_pad(torch.zeros(2, 1, 40, 40), seed=(1, 2))
    RandomizationDefence(nn.Flatten(), passes=2, seed=1)(torch.zeros(2, 1, 40, 40))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(random_resize_pad(torch.zeros(2, 1, 40, 40), seed=(1, 2)), first)


def test_without_a_seed_every_call_differs_and_manual_seed_governs() -> None:
    images, layer = torch.zeros(8, 1, 40, 40), RandomResizePad()
    torch.manual_seed(3)
    first, second = layer(images), layer(images)
    torch.manual_seed(3)
    assert torch.equal(layer(images), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_channels_and_dtypes(channels: int, dtype: torch.dtype) -> None:
    images = torch.rand(2, channels, 20, 24).to(dtype)
    defended = random_resize_pad(images, seed=0)
    assert defended.dtype == dtype
    assert torch.equal(defended.float(), random_resize_pad(images.float(), seed=0))


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_contexts(context, requires_grad: bool) -> None:
    images = torch.rand(2, 3, 32, 32, requires_grad=requires_grad)
    layer = RandomResizePad(seed=1)
    expected = layer(images)
    with context():
        defended = layer(images)
    assert defended.dtype == torch.float32
    assert torch.equal(defended, expected)


@pytest.mark.parametrize(
    "changed",
    [lambda m: m.eval(), copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.to(torch.float64)],
    ids=["eval", "deepcopy", "pickle", "to"],
)
def test_module_life(changed) -> None:
    images = torch.rand(2, 3, 32, 32)
    layer = RandomResizePad(seed=(1, 2))
    expected = layer(images)
    assert torch.equal(changed(layer)(images), expected)
    assert not list(layer.parameters())
    assert not layer.state_dict()


def test_empty_batch() -> None:
    assert RandomResizePad()(torch.zeros(0, 3, 32, 32)).shape == (0, 3, 35, 35)
    assert RandomizationDefence(linear_classifier(), passes=2)(torch.zeros(0, 3, 32, 32)).shape == (0, 4)


class Recorder(nn.Module):
    """A classifier that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return torch.stack([images[:, :, :18].mean(dim=(1, 2, 3)), images[:, :, 18:].mean(dim=(1, 2, 3))], dim=1) * 9


def test_averaging_is_over_the_softmax_of_different_passes() -> None:
    recorder = Recorder()
    images = torch.rand(3, 3, 32, 32)
    output = RandomizationDefence(recorder, passes=5, seed=(1, 2, 3))(images)
    assert len(recorder.seen) == 5
    assert torch.equal(recorder.seen[0], RandomResizePad(seed=(1, 2, 3))(images))
    assert len({box(shown[0]) for shown in recorder.seen}) > 2
    mean = sum(F.softmax(recorder(shown), dim=1) for shown in list(recorder.seen)) / 5
    torch.testing.assert_close(output.exp(), mean)


def test_one_pass_is_the_layer_and_the_classifier() -> None:
    classifier, images = linear_classifier(), torch.rand(3, 3, 32, 32)
    expected = F.log_softmax(nn.Sequential(RandomResizePad(seed=4), classifier)(images), dim=1)
    torch.testing.assert_close(RandomizationDefence(classifier, passes=1, seed=4)(images), expected)


def test_averaged_gradient_agrees_with_finite_differences() -> None:
    defended = RandomizationDefence(linear_classifier().double(), passes=3, seed=2)
    images = 0.1 + 0.8 * torch.rand(1, 3, 6, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(defended, images.requires_grad_())


GOOD = torch.rand(2, 3, 32, 32)
BAD_IMAGES = {
    "no tensor": (GOOD.numpy(), TypeError, "torch.Tensor"),
    "no batch axis": (GOOD[0], ValueError, "batch axis"),
    "uint8": ((GOOD * 255).byte(), TypeError, "divide uint8 images by 255"),
    "normalised": ((GOOD - 0.485) / 0.229, ValueError, "already normalised"),
    "NaN": (GOOD / 0, ValueError, "finite"),
    "channels last": (torch.rand(1, 64, 64, 3), ValueError, r"use images\.permute\(0, 3, 1, 2\)"),
    "too small": (torch.rand(1, 3, 4, 40), ValueError, "at least 5 pixels high and wide, got 4×40"),
}


@pytest.mark.parametrize(("images", "error", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_raise_before_any_work(images, error, message: str) -> None:
    recorder = Recorder()
    for defence in (RandomResizePad(), RandomizationDefence(recorder)):
        with pytest.raises(error, match=message):
            defence(images)
    assert not recorder.seen


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed must be"),
        ({"seed": 1.5}, TypeError, "seed must be"),
        ({"out_of_range": "ignore"}, ValueError, 'out_of_range must be "raise" or "clip"'),
        ({"passes": 0}, ValueError, "passes must be"),
        ({"passes": 2.0}, TypeError, "passes must be"),
        ({"passes": True}, TypeError, "passes must be"),
        ({"passes": 10**30}, ValueError, "passes must be"),
    ],
    ids=str,
)
def test_bad_arguments_raise_at_construction(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        RandomizationDefence(nn.Identity(), **arguments)
    if "passes" not in arguments:
        with pytest.raises(error, match=message):
            RandomResizePad(**arguments)


def test_a_classifier_that_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"classifier must be a torch\.nn\.Module, got <function"):
        RandomizationDefence(lambda images: images)


def test_a_wrong_number_of_seeds() -> None:
    with pytest.raises(ValueError, match="3 seeds for 2 images"):
        random_resize_pad(GOOD, seed=(1, 2, 3))


@pytest.mark.gpu
def test_a_seed_means_the_same_on_the_gpu() -> None:
    defended = RandomResizePad(seed=(1, 2))(GOOD.cuda())
    assert defended.is_cuda
    assert torch.equal(defended.cpu(), RandomResizePad(seed=(1, 2))(GOOD))
