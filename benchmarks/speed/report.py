"""A record of the speed benchmark as text and as a plot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

Record = Mapping[str, Any]


def text(record: Record) -> str:
    """The record as text: hardware, checks, results and the quality part.

    The results are times, ratios to the published loop, memory, and shares of the floor.
    """
    return "\n".join([*_head(record), *_times(record), *_quality(record)])


def _head(record: Record) -> Iterator[str]:
    circumstances = record["circumstances"]
    versions = circumstances["versions"]
    yield f"{circumstances['hardware']}; torch {versions['torch']}; commit {circumstances['commit']}"
    for dtype, ceiling in record["ceilings"].items():
        yield f"ceilings, {dtype}: {ceiling['flops'] / 1e12:.3g} TFLOP/s, {ceiling['bytes'] / 1e9:.3g} GB/s"


def _times(record: Record) -> Iterator[str]:
    for setting in record["settings"]:
        yield ""
        yield (
            f"{setting['name']}: {setting['flops']['published'] / 1e9:.4g} GFLOP an iteration as published, "
            f"{setting['flops']['rewritten'] / 1e9:.4g} at least"
        )
        for name, errors in setting["checks"].items():
            if "failed" in errors:
                yield f"  not timed: {name}: {errors['failed']}"
                continue
            # Records up to November 2026 have the outputs' error as "drawing".
            output = errors["output"] if "output" in errors else errors["drawing"]
            yield f"  checked: {name}, outputs to {output:.0e}, gradients to {errors['gradient']:.0e}"
        yield (
            f"  {'contender':18} {'batch':>5}  {'s/image/1000 iterations':>26}  {'× published loop':>22}"
            f"  {'MiB':>8}  {'of floor':>8}"
        )
        for row in record["results"]:
            if row["setting"] != setting["name"]:
                continue
            beginning = f"  {row['contender']:18} {row['batch']:>5}  "
            if "skipped" in row:
                yield beginning + row["skipped"]
                continue
            memory = "–" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}"
            yield (
                f"{beginning}{_range(row['seconds']):>26}  {_range(row['speedup']):>22}  {memory:>8}"
                f"  {row['share_of_floor']:>8.1%}"
            )


def _range(values: Record) -> str:
    return f"{values['median']:.4g} [{values['low']:.4g}, {values['high']:.4g}]"


def _quality(record: Record) -> Iterator[str]:
    quality = record.get("quality")
    if quality is None:
        return
    count, base = len(quality["labels"]), next(iter(quality["loops"]))
    yield ""
    yield f"quality: {count} packaged images, {quality['classifier']}; differences are to the first row"
    for name, row in quality["loops"].items():
        if "failed" in row:
            yield f"  {name}: failed: {row['failed']}"
            continue
        yield f"  {name}: |Δ log loss| {row['log_loss_difference']:.3f}"
        for index, budget in enumerate(quality["budgets"]):
            psnr = sum(row["psnr"][index]) / count
            right = sum(p == t for p, t in zip(row["predictions"][index], quality["labels"], strict=True))
            yield (
                f"    {budget:>5} iterations: PSNR {psnr:.2f} dB ({row['psnr_difference'][index]:+.2f}), "
                f"{right} of {count} correct, {row['same_decisions'][index]} of {count} decided as by {base}"
            )


def plot(record: Record, path: Path) -> None:
    """Plot the time of an image against the batch size, and against its pixels.

    Each setting has a panel for its batch sizes.
    """
    settings = record["settings"]
    figure, panels = plt.subplots(
        1, len(settings) + 1, figsize=(4.2 * (len(settings) + 1), 4.2), squeeze=False, layout="constrained"
    )
    timed = [row for row in record["results"] if "skipped" not in row]
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(row["contender"] for row in timed))}
    for panel, setting in zip(panels[0], settings, strict=False):
        rows = [row for row in timed if row["setting"] == setting["name"]]
        for name, colour in colours.items():
            own = [row for row in rows if row["contender"] == name]
            if not own:
                continue
            middle = [row["seconds"]["median"] for row in own]
            below = [row["seconds"]["median"] - row["seconds"]["low"] for row in own]
            above = [row["seconds"]["high"] - row["seconds"]["median"] for row in own]
            batches = [row["batch"] for row in own]
            panel.errorbar(batches, middle, yerr=(below, above), marker="o", color=colour, label=name, capsize=3)
            if not own[0]["batched"]:
                panel.axhline(middle[0], color=colour, linestyle=":")
        for dtype, seconds in setting["floor_seconds"].items():
            style = {"fp32": "--", "bf16": "-."}[dtype]
            panel.axhline(seconds, color="grey", linestyle=style, label=f"floor, {dtype}")
        panel.set(title=setting["name"], xlabel="images at once", xscale="log", yscale="log")
        _label(panel, {row["batch"]: str(row["batch"]) for row in rows})
    panels[0, 0].set_ylabel("seconds an image and 1,000 iterations")
    _against_pixels(panels[0, -1], record, colours)
    figure.suptitle(record["circumstances"]["hardware"], fontsize="small")
    # One for all panels, outside of them, where it hides no point.
    labels = {
        label: line for panel in panels[0] for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _against_pixels(panel: Any, record: Record, colours: Mapping[str, str]) -> None:
    # One network for each size: at 32×32 the first of two, which has the paper's width.
    first = {setting["side"]: setting["name"] for setting in reversed(record["settings"])}
    fastest: dict[str, dict[int, float]] = defaultdict(dict)
    for row in record["results"]:
        if "skipped" not in row and first[row["side"]] == row["setting"]:
            best = fastest[row["contender"]].get(row["side"] ** 2, float("inf"))
            fastest[row["contender"]][row["side"] ** 2] = min(best, row["seconds"]["median"])
    for name, colour in colours.items():
        points = sorted(fastest[name].items())
        panel.plot([pixels for pixels, _ in points], [time for _, time in points], "o-", color=colour, label=name)
    panel.set(title="each at its fastest batch size", xlabel="pixels an image", xscale="log", yscale="log")
    _label(panel, {side**2: f"{side}×{side}" for side in first})


def _label(panel: Any, names: Mapping[int, str]) -> None:
    """Set ticks only where something was measured."""
    panel.set_xticks(list(names), list(names.values()))
    panel.set_xticks([], minor=True)
