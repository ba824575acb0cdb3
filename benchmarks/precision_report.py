"""The report and the plot of ``precision.py``.

They show the difference between two ways to fit, relative to that between two seeds of fp32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipdefense.evaluation import bootstrap

Fits = Mapping[tuple[int, str], Mapping[str, Any]]
"""The records of one way by (seed, image)."""

QUANTITIES = {
    "log loss": "natural logarithm, mean over the iterations since the last budget",
    "PSNR to the attacked image": "dB; the fit's target",
    "PSNR to the clean image": "dB",
    "confidence": "of the true class",
    "decision": "share of other predictions; signed: accuracy",
}


@dataclass(frozen=True)
class Measured:
    """The fits that both ways, fp32 and another, have of the same images and seeds.

    Attributes:
        images: ids.
        seeds: at least two.
        values: by way and quantity, (seeds, images, budgets); for the decision the predicted class.
        correct: by way, (seeds, images, budgets), 1 where the prediction is right.
        curves: by way, (seeds, images, stored losses).
        undefended: by image, whether the classifier alone is right under the attack.
        seconds: by way, the mean of a fit.
        diverged: by way, the number of fits with a loss that is not finite.
    """

    images: tuple[str, ...]
    seeds: tuple[int, ...]
    values: dict[str, dict[str, Tensor]]
    correct: dict[str, Tensor]
    curves: dict[str, Tensor]
    undefended: tuple[bool, ...]
    seconds: dict[str, float]
    diverged: dict[str, int]


def collect(ways: Mapping[str, Fits]) -> Measured | None:
    """The fits of the images that both ways have with every seed.

    None if there are no such images or fewer than two seeds.

    Args:
        ways: "fp32" and another.
    """
    fp32, other = ways["fp32"], ways[_other(ways)]
    seeds = tuple(sorted({seed for seed, _ in (*fp32, *other)}))
    both = fp32.keys() & other.keys()
    # A dictionary keeps the order of the run.
    images = tuple(dict.fromkeys(name for _, name in fp32 if all((seed, name) in both for seed in seeds)))
    if len(seeds) < 2 or not images:
        return None
    values, correct, curves, seconds, diverged = {}, {}, {}, {}, {}
    for way, fits in ways.items():
        chosen = [[fits[seed, name] for name in images] for seed in seeds]

        def stacked(key: str, chosen: Sequence[Sequence[Mapping[str, Any]]] = chosen) -> Tensor:
            return torch.tensor([[fit[key] for fit in row] for row in chosen], dtype=torch.float64)

        predictions, curves[way] = stacked("predictions"), stacked("losses")
        between = curves[way].log().view(*predictions.shape, -1).mean(dim=3)
        named = ("psnr_attacked", "psnr_clean", "confidences")
        values[way] = dict(zip(QUANTITIES, (between, *map(stacked, named), predictions), strict=True))
        correct[way] = (predictions == stacked("label")[..., None]).double()
        seconds[way] = stacked("seconds").mean().item()
        diverged[way] = sum(fit["status"] != "ok" for row in chosen for fit in row)
    first = [fp32[seeds[0], name] for name in images]
    undefended = tuple(fit["undefended"]["prediction"] == fit["label"] for fit in first)
    return Measured(images, seeds, values, correct, curves, undefended, seconds, diverged)


def _other(ways: Iterable[str]) -> str:
    (other,) = (way for way in ways if way != "fp32")
    return other


def differences(measured: Measured, quantity: str) -> tuple[Tensor, Tensor, Tensor]:
    """The differences between the ways and between seeds, each (images, budgets).

    The first is the absolute difference of the two ways, a mean over the seeds. The second is that of two seeds of
    fp32, a mean over the pairs of seeds. The third is the other way − fp32, a mean over the seeds. Decisions differ by
    0 or 1, and their third difference is in accuracy.
    """
    name = _other(measured.values)
    fp32, other = (measured.values[way][quantity] for way in ("fp32", name))
    decision = quantity == "decision"

    def distance(first: Tensor, second: Tensor) -> Tensor:
        return (first != second).double() if decision else (first - second).abs()

    pairs = [distance(fp32[a], fp32[b]) for a, b in itertools.combinations(range(len(fp32)), 2)]
    signed = measured.correct[name] - measured.correct["fp32"] if decision else other - fp32
    return distance(other, fp32).mean(dim=0), torch.stack(pairs).mean(dim=0), signed.mean(dim=0)


def interval(values: Tensor) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of (images,) values."""
    low, high = bootstrap.interval(bootstrap.resampled_means(values)).tolist()
    return low, high


def as_markdown(measured: Measured, budgets: Sequence[int], heads: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The report's lines: circumstances, and for each quantity a verdict and a table."""
    configuration = heads["fp32"]["configuration"]
    other = _other(heads)
    yield f"# {other} against fp32: {configuration['setting']}"
    yield ""
    yield f"{configuration['classifier']}; {configuration['data']}; {configuration['attack']}."
    yield (
        f"{len(measured.images)} images, seeds {', '.join(map(str, measured.seeds))}, to {budgets[-1]} iterations; "
        f"under the attack the classifier alone classifies {sum(measured.undefended)} correctly."
    )
    for way, head in heads.items():
        yield ""
        yield (
            f"{way}: {measured.seconds[way]:.3g} s a fit, {measured.diverged[way]} diverged; "
            f"accuracy at the last budget {measured.correct[way][..., -1].mean():.1%}"
        )
        for session in head["sessions"]:
            versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
            yield f"- `{session['command']}`, commit {session['commit']}, {session['hardware']}, {versions}"
    yield ""
    yield f"Means over the images, with the 95 % interval of a bootstrap over them. `ways`: |{other} − fp32| with the"
    yield "same seed; `seeds`: fp32's difference between two seeds; `excess`: the first less the second, by image;"
    yield f"`signed`: {other} − fp32. The verdict is of the mean over all budgets: yes where the excess is"
    yield "above chance, no where it is below zero; otherwise not shown, and its upper end relative to `seeds`."
    yield ""
    for quantity in QUANTITIES:
        yield _verdict(other, quantity, *(part.mean(dim=1) for part in differences(measured, quantity)))
    for quantity, unit in QUANTITIES.items():
        yield from ("", f"## {quantity} ({unit})", "", "| budget | ways | seeds | excess | signed |")
        yield "| ---: | ---: | ---: | ---: | ---: |"
        for budget, *parts in zip(budgets, *(part.unbind(1) for part in differences(measured, quantity)), strict=True):
            own, yardstick, signed = parts
            yield (
                f"| {budget} | {own.mean():.4g} | {yardstick.mean():.4g} | {_with_interval(own - yardstick)} "
                f"| {_with_interval(signed)} |"
            )


def _verdict(other: str, quantity: str, own: Tensor, yardstick: Tensor, signed: Tensor) -> str:
    # A fit that diverged makes the interval NaN, and counts as a larger difference.
    low, high = interval(own - yardstick)
    larger = "no" if high <= 0 else "not shown" if low <= 0 else "yes"
    most = f", by {max(high, 0) / yardstick.mean():.0%} at most" if larger == "not shown" else ""
    return (
        f"- **{quantity}: {other} differs from fp32 by more than two seeds of fp32 do: {larger}{most}** (ways "
        f"{own.mean():.4g}, seeds {yardstick.mean():.4g}, excess {_with_interval(own - yardstick)}; "
        f"signed {_with_interval(signed)})"
    )


def _with_interval(values: Tensor) -> str:
    low, high = interval(values)
    return f"{values.mean():+.3g} [{low:+.3g}, {high:+.3g}]"


def plot(measured: Measured, budgets: Sequence[int], path: Path, *, stride: int) -> None:
    """Plot losses, both PSNRs and accuracy against the iterations.

    Each way has a line for its mean and a faint line for each of its seeds.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    iterations = [stride * (index + 1) for index in range(measured.curves["fp32"].shape[2])]
    for way, colour, style in (("fp32", "C0", "-"), (_other(measured.curves), "C1", "--")):
        psnrs = [measured.values[way][name] for name in QUANTITIES if name.startswith("PSNR")]
        curves = measured.curves[way].log().mean(dim=1).exp()
        by_seed = [curves, *(value.mean(dim=1) for value in (*psnrs, measured.correct[way]))]
        for panel, seeds in zip(panels.flat, by_seed, strict=True):
            places = iterations if seeds is curves else budgets
            panel.plot(places, seeds.T, color=colour, linestyle=style, alpha=0.3, linewidth=1)
            mean = seeds.log().mean(dim=0).exp() if seeds is curves else seeds.mean(dim=0)
            panel.plot(places, mean, color=colour, linestyle=style, label=f"{way}, mean of seeds")
    titles = ("loss (geometric mean)", "PSNR to the attacked image (dB)", "PSNR to the clean image (dB)", "accuracy")
    for panel, title in zip(panels.flat, titles, strict=True):
        panel.set(title=title, xlabel="iterations")
    panels[0, 0].set_yscale("log")
    undefended = sum(measured.undefended) / len(measured.images)
    panels[1, 1].axhline(undefended, color="grey", linestyle=":", label="undefended")
    panels[1, 1].set_ylim(-0.03, 1.03)
    panels[0, 0].legend()
    panels[1, 1].legend()
    figure.suptitle(f"{len(measured.images)} images, {len(measured.seeds)} seeds (faint)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
