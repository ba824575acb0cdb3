"""Figures 2, 4 and 5 from their command lines, on small images in few iterations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from dipdefense import classifiers, reconstruct
from dipdefense.attacks import Attack
from dipdefense.config import DIPConfig
from dipdefense.datasets import packaged_images
from dipdefense.files import read_image
from dipdefense.paper import figure2, figure4, figure5, figures
from dipdefense.saliency import gradient, mask, overlay
from dipdefense.seeds import derive_seed

IMAGE = "cifar10_04_6.png"
FIGURES = {"figure2": figure2, "figure4": figure4, "figure5": figure5}
RECONSTRUCTION = ["--config", "architecture-2", "--budgets", "2", "3", "--attack", "fgsm-10", "--seed", "4"]
MAPS = ["--steps", "2", "--samples", "1"]
ARGUMENTS = {"figure2": [*RECONSTRUCTION, *MAPS], "figure4": MAPS, "figure5": RECONSTRUCTION}

Made = tuple[Figure, dict[str, Any]]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.pt"
    torch.save(classifiers.untrained_cifar10().network.state_dict(), path)
    return path


@pytest.fixture
def make(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    """A figure by name, and its record."""
    kept: list[Figure] = []
    write = figures.write

    def keep(figure: Figure, *others: Any, **named: Any) -> object:
        kept.append(figure)
        return write(figure, *others, **named)

    monkeypatch.setattr(figures, "write", keep)

    def made(name: str, *arguments: str) -> Made:
        common = ["--classifier", "cifar10-cnn", "--weights", str(weights), "--image", IMAGE, "--device", "cpu"]
        given = [*common, *ARGUMENTS[name], "--out", str(tmp_path / "new" / "out"), *arguments]
        FIGURES[name].reproduce(description=None, arguments=given)
        return kept[-1], json.loads((tmp_path / "new" / "out" / f"{name}.json").read_text())

    return made


@pytest.fixture
def original() -> tuple[torch.Tensor, torch.Tensor]:
    images = packaged_images("cifar10")
    index = images.ids.index(IMAGE)
    return images.images[[index]], images.labels[[index]]


def pixels(axes: Any) -> np.ndarray[Any, Any]:
    (image,) = axes.images
    return np.asarray(image.get_array())


def about(figure: Figure) -> str:
    """The paragraphs below the title."""
    (part,) = figure.subfigs
    return " ".join(part.get_suptitle().split())


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Texts that cover each other, as the picture has them."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.overlaps(other)]


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_covers_another(name: str, make: Callable[..., Made]) -> None:
    figure, _ = make(name)
    assert overlaps(figure) == []


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_picture_and_a_record(name: str, make: Callable[..., Made], tmp_path: Path) -> None:
    _, told = make(name)
    picture = read_image(tmp_path / "new" / "out" / f"{name}.png")
    assert picture.pixels.std() > 0.1
    assert told["image"] == IMAGE
    assert set(told["circumstances"]) >= {"command", "commit", "hardware", "versions"}
    assert 0 <= told["undefended"]["clean"]["confidence"] <= 1


def test_figure_2_has_outputs_masks_and_masks_on_the_original(
    make: Callable[..., Made], original: tuple[torch.Tensor, torch.Tensor], weights: Path
) -> None:
    figure, told = make("figure2")
    classifier = classifiers.load("cifar10-cnn", weights=weights)
    clean, labels = original
    attacked = Attack("FGSM", 10)(classifier, clean, labels)
    seed = derive_seed(4, "dip", IMAGE)
    run = reconstruct(attacked, budgets=(2, 3), config=DIPConfig.architecture_2(), seed=seed)
    confidences = classifier(run.images[:, 0]).softmax(dim=1)[:, labels[0]].tolist()
    outcomes = told["reconstruction"]["outputs"]
    assert [outcome["budget"] for outcome in outcomes] == [2, 3]
    assert [outcome["confidence"] for outcome in outcomes] == pytest.approx(confidences, rel=1e-4)
    rows = np.reshape(figure.axes, (3, 2))
    assert [axes.get_ylabel() for axes in rows[:, 0]] == ["DIP output", "MIG-SG mask", "on the original"]
    for column, outcome in enumerate(outcomes):
        output, shade, overlaid = (pixels(axes) for axes in rows[:, column])
        above = f"{outcome['budget']} iterations\nconfidence {figures.shown(outcome['confidence'])}"
        assert rows[0, column].get_title() == above
        np.testing.assert_allclose(output, run.images[column, 0].permute(1, 2, 0), atol=1e-4)
        assert shade.max() == 1
        assert shade.std() > 0.05
        expected = overlay(clean, torch.from_numpy(shade)[None, None])
        np.testing.assert_allclose(overlaid, expected[0].permute(1, 2, 0), atol=1e-6)
    for words in ("REDUCED SETTING", "3 iterations at most instead of 4000", "FGSM ε=10, defence-unaware", IMAGE):
        assert words in about(figure)


def test_figure_4_has_every_method_with_its_name_under_it(
    make: Callable[..., Made], original: tuple[torch.Tensor, torch.Tensor], weights: Path
) -> None:
    figure, told = make("figure4")
    names = ["image", *told["saliency"]["methods"]]
    assert [axes.get_xlabel()[4:] for axes in figure.axes] == names
    assert names[1:] == ["gradient", "integrated gradients", "SmoothGrad", "MIG-SG"]
    clean, labels = original
    expected = mask(gradient(classifiers.load("cifar10-cnn", weights=weights), clean, target=labels))
    np.testing.assert_allclose(pixels(figure.axes[1]), expected[0, 0], atol=1e-5)
    shades = [pixels(axes) for axes in figure.axes[1:]]
    assert all(not np.allclose(a, b) for i, a in enumerate(shades) for b in shades[:i])
    assert told["attack"] == "clean"


def test_figure_5_has_the_pipeline_and_the_confidences(make: Callable[..., Made]) -> None:
    figure, told = make("figure5")
    grid = np.reshape(figure.axes, (2, 5))
    titles = [axes.get_title() for axes in grid[0]]
    assert titles[:2] == ["image", "attacked: FGSM ε=10"]
    assert titles[3:] == ["output at 2 iterations", "output at 3 iterations"]
    texts = " ".join(text.get_text() for text in grid[0, 2].texts)
    assert "3 scales, 16 channels" in texts
    assert "26,575 parameters" in texts
    outcomes = [*told["undefended"].values(), *told["reconstruction"]["outputs"]]
    for column, outcome in zip((0, 1, 3, 4), outcomes, strict=True):
        bars = grid[1, column].patches
        assert max(bar.get_width() for bar in bars) == pytest.approx(outcome["predicted confidence"], rel=1e-4)
        truth = [bar for bar in bars if matplotlib.colors.same_color(bar.get_facecolor()[:3], figure5._TRUE)]
        assert [bar.get_width() for bar in truth] == pytest.approx([outcome["confidence"]], rel=1e-4)


def test_nothing_is_reduced_where_network_and_budgets_are_the_papers(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure, _ = make("figure5")
    assert "REDUCED SETTING, NOT THE PAPER'S: 32×32 pixels" in about(figure)
    example = figures.Example(
        **dict.fromkeys(figures.Example.__dataclass_fields__) | {"clean": torch.rand(1, 3, 224, 224)}
    )
    assert figures.reduced(example, DIPConfig.paper(), (500, 1000), largest=1000) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        ("--image", "cat.jpg"): "no image of packaged CIFAR-10 images has the id 'cat.jpg'; ids are such as",
        ("--attack", "pgd-3"): "argument --attack: must be clean, or an attack and ε such as fgsm-5",
        ("--seed", "-1"): "argument --seed: must be an integer",
        ("--steps", "0"): "argument --steps: must be an integer",
        ("--config", "paper"): "images of 32×32 pixels are too small for 5 scales",
    }.items(),
    ids=str,
)
def test_a_usage_error_is_one_line_and_exit_2(
    arguments: tuple[str, ...], message: str, make: Callable[..., Made], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        make("figure2", *arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
