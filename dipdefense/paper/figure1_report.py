"""Figure 1 of one run, from its records alone: text, Markdown, CSV and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from dipdefense.evaluation import Run
from dipdefense.evaluation.bootstrap import RESAMPLES
from dipdefense.evaluation.curves import Curve, confidence_curves
from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.report import Rows, Section, markdown, png, provenance, text, write_files
from dipdefense.evaluation.report import table as markdown_table
from dipdefense.evaluation.statistics import sanity_checks, summarise
from dipdefense.paper.figure1_claims import HOW, findings
from dipdefense.paper.figure1_plots import by_adversary, by_strength
from dipdefense.paper.figure1_setting import reduction
from dipdefense.paper.labels import network, subject
from dipdefense.paper.published import about_parameters
from dipdefense.paper.report import STATEMENT, claims_section

NAME = "figure1"
TITLE = "Figure 1: confidence against the iterations (defence-unaware attacks)"

_PEAKS = (
    "Peak: the iterations at which the mean over the images is highest, the confidence there, and at the last "
    "iteration; in brackets 95 % percentile intervals of {resamples:,} bootstrap samples of the images. Images' own "
    "peaks: the median of the iterations at which each image's curve is highest."
)
_NOTES = (
    "The paper's text names 20 images, ResNet18 and every 100 iterations; the numbers are in its picture alone, so "
    "none stand beside these.",
    "BI takes one step of 1/255 at ε = 1 and so is FGSM there; its curves there are the same run twice.",
    "BI and LLCI take min(ε + 4, 1.25 ε) steps of 1/255 (Kurakin et al. 2016): 104 at ε = 100, whose perturbation need "
    "not reach that norm.",
)


def write_report(run: Run, *, folder: Path) -> list[Path]:
    """Write figure1.txt, .md and .csv, pictures, and the records in figure1.jsonl.

    All the others come from the records. If an attack was measured, figure1.png has the means, and figure1-images.png
    every image's curve.

    Args:
        run: from ``measure_figure`` or, to write a report once more, from ``read_export``.
        folder: made if need be.

    Raises:
        ValueError: there are no records, or not every image has been through everything.
        ImportError: Matplotlib is missing.
    """
    curves = _curves(run)
    heading = TITLE, [*_banner(run, curves), _about(run, curves)]
    files: dict[str, str | bytes] = {
        f"{NAME}.txt": as_text(run),
        f"{NAME}.md": as_markdown(run),
        f"{NAME}.csv": as_csv(run),
    }
    if any(curve.condition != "clean" for curve in curves):
        files[f"{NAME}.png"] = png(by_adversary(curves, *heading))
        files[f"{NAME}-images.png"] = png(by_strength(curves, *heading))
    return write_files(folder, files, {f"{NAME}.jsonl": run})


def as_text(run: Run) -> str:
    """The report for a terminal."""
    return text(_sections(run))


def as_markdown(run: Run) -> str:
    """The report in Markdown."""
    return markdown(_sections(run))


def as_csv(run: Run) -> str:
    """Every point of every curve, for programs.

    At 0 iterations are the images themselves, without an interval.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["condition", "iterations", "n", "confidence", "from", "to", "classifier", "setting"])
    ending = run.configuration["classifier"], "defence-unaware"
    for curve in _curves(run):
        if curve.undefended is not None:
            alone = f"{curve.undefended.mean().item():.4g}"
            writer.writerow([condition_title(curve.condition), 0, curve.n, alone, "", "", *ending])
        for budget, *ends in zip(curve.budgets, curve.mean, *curve.band, strict=True):
            numbers = (f"{value:.4f}" for value in ends)
            writer.writerow([condition_title(curve.condition), budget, curve.n, *numbers, *ending])
    return lines.getvalue()


def headline(run: Run) -> str:
    """A README's table, in Markdown: what was measured on what, and the peaks."""
    curves = _curves(run)
    about = " ".join(["Figure 1, the true class's confidence.", *_banner(run, curves), _about(run, curves)])
    return "\n".join([about, "", *markdown_table(_peaks(curves))])


def _sections(run: Run) -> Iterator[Section]:
    curves, cells = _curves(run), summarise(run.records)
    reduced = _banner(run, curves)
    yield Section(TITLE, [*reduced, _about(run, curves), STATEMENT])
    yield Section(f"Peaks, n = {curves[0].n}", [_PEAKS.format(resamples=RESAMPLES)], _peaks(curves))
    if claims := findings(curves):
        yield claims_section(claims, HOW, reduced=bool(reduced))
    checks = [f"{'passed' if passed else 'FAILED'}: {check}" for check, passed in sanity_checks(cells)]
    diverged = sum(record.status == "diverged" for record in run.records)
    yield Section(
        "Sanity checks of the attacks, on the undefended classifier",
        items=[*checks, f"{diverged} reconstructions diverged, and count as confidence 0"],
    )
    yield Section("Notes", items=[*_NOTES, *about_parameters(network(run), run.configuration["input"])])
    yield Section("How it was measured", items=list(provenance(run)))


def _peaks(curves: Sequence[Curve]) -> Rows:
    """A line a condition: the image's own confidence, the peak, and the end."""
    last = curves[0].budgets[-1]
    rows = [["condition", "no defence", "peak at", "at the peak", f"at {last}", "images' own peaks, median"]]
    for curve in curves:
        alone = "–" if curve.undefended is None else f"{curve.undefended.mean().item():.2f}"
        peak = curve.peak
        place = f"{peak.value:g} [{peak.low:g}, {peak.high:g}]"
        at_peak, at_last = str(curve.at(int(peak.value))), str(curve.at(curve.budgets[-1]))
        rows.append([condition_title(curve.condition), alone, place, at_peak, at_last, f"{median(curve.peaks):g}"])
    return rows


def _curves(run: Run) -> list[Curve]:
    """The run's curves.

    Raises:
        ValueError: there are no records, or not every image has been through everything.
    """
    summarise(run.records)
    return confidence_curves(run.records)


def _banner(run: Run, curves: Sequence[Curve]) -> list[str]:
    """The warning that a setting is not the paper's, or nothing."""
    return reduction(
        network(run),
        images=curves[0].n,
        budgets=curves[0].budgets,
        shape=run.configuration["input"],
        conditions=[curve.condition for curve in curves],
    )


def _about(run: Run, curves: Sequence[Curve]) -> str:
    """Classifier, images and setting, in words."""
    return subject(run, curves[0].n)
