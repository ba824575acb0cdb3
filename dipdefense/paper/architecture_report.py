"""The report of section 6 from its records alone: text, Markdown, CSV, plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from dipdefense.evaluation import Run, read_export
from dipdefense.evaluation.bootstrap import RESAMPLES
from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.report import Rows, Section, markdown, png, provenance, text, write_files
from dipdefense.paper.architecture import VARIANTS, record_name, reduced
from dipdefense.paper.architecture_claims import MARGIN, findings
from dipdefense.paper.architecture_outcomes import Outcomes, contrast, outcomes
from dipdefense.paper.architecture_plots import confidences, differences
from dipdefense.paper.labels import shown_budgets, subject
from dipdefense.paper.report import STATEMENT, claims_section

TITLE = "Section 6: the defence with one thing changed in its network (defence-unaware attacks)"

_PEAKS = (
    "Each network is taken at the budget where its mean confidence of the true class under attack peaks (in brackets: "
    "95 % of {resamples:,} resamples of the images). That budget is chosen on these images, for every network alike: "
    "the accuracies at the peaks are a little too good, and the p of their differences are approximate. The next table "
    "has budgets fixed beforehand."
)
_PAIRED = (
    "Points: the variant's accuracy less the original's with its 95 % interval (Newcombe 1998, method 10); then how "
    "many images the variant alone classifies correctly : how many the original alone, and the exact two-sided McNemar "
    "p of so uneven a split. First seed; the p of this table are not corrected for the number of comparisons."
)
_CLAIMS = (
    "The paper gives no numbers for its “fail” and “little”. Here a network loses if its accuracy is lower than the "
    f"original's by {100 * MARGIN:.0f} points or more, with p < 0.05 (exact McNemar test on the same images, "
    "two-sided, corrected within a claim by Holm's procedure). It holds if the 95 % interval excludes such a loss, and "
    "changes little if it excludes a gain of as many, too. A network fails if it loses on clean images and under "
    "every attack; that is contradicted if it loses nowhere and holds somewhere. Most changes change little if more "
    "than half do everywhere; that is contradicted if more than half lose somewhere. The original stands out along one "
    "of its numbers if both neighbours lose, and does not if one of them holds everywhere."
)
_NOTES = (
    "Section 6 names two changes, no skip connections and a very shallow network; the others are those that the code "
    "of Ulyanov et al. offers.",
    "All networks have the same seeds, learning rate and budgets, and none was tuned.",
    "A Lanczos filter is fixed here and trained in the published code.",
)


def write_report(runs: Mapping[str, Run], *, folder: Path) -> list[Path]:
    """Write architecture.txt, .md, .csv, plots, and each network's records.

    There are two plots, or one if there is no variant.

    Args:
        runs: from ``measure_variants`` or, to write a report once more, from ``read_runs``.
        folder: made if need be.

    Raises:
        ValueError: see ``outcomes``.
        ImportError: Matplotlib is missing.
    """
    found = outcomes(runs)
    files: dict[str, str | bytes] = {
        "architecture.txt": text(sections(found)),
        "architecture.md": as_markdown(found),
        "architecture.csv": as_csv(found),
        "architecture-confidence.png": png(confidences(found, banner(found))),
    }
    if len(found) > 1:
        files["architecture-differences.png"] = png(differences(found, banner(found)))
    return write_files(folder, files, {f"{record_name(name)}.jsonl": run for name, run in runs.items()})


def read_runs(folder: Path) -> dict[str, Run]:
    """The records that ``write_report`` wrote into a folder, by variant.

    Raises:
        ExportError: a file is not as it was written.
    """
    files = {name: folder / f"{record_name(name)}.jsonl" for name in VARIANTS}
    return {name: read_export(file) for name, file in files.items() if file.exists()}


def as_markdown(found: Sequence[Outcomes]) -> str:
    """The report in Markdown."""
    return markdown(sections(found))


def as_csv(found: Sequence[Outcomes]) -> str:
    """Every accuracy on a line of its own, for programs."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(
        ["variant", "condition", "defence", "budget", "n", "accuracy, %", "from", "to", "confidence", "seconds"]
    )
    for one in found:
        for (condition, budget), cell in one.cells.items():
            percents = [f"{100 * share:.1f}" for share in (cell.accuracy, *cell.interval)]
            confidence = f"{one.confidence(condition, budget):.4f}" if budget else ""
            writer.writerow(
                [one.name, condition, cell.defence, budget, cell.n, *percents, confidence, f"{cell.seconds:.3g}"]
            )
    return lines.getvalue()


def banner(found: Sequence[Outcomes]) -> str:
    """The warning that the setting is reduced, or nothing."""
    original = found[0]
    configs = {one.name: one.config for one in found}
    shape = original.run.configuration["input"]
    return reduced(configs, images=original.n, budgets=original.budgets, shape=shape)


def sections(found: Sequence[Outcomes]) -> Iterator[Section]:
    """The report's sections."""
    original, warning = found[0], banner(found)
    about = subject(original.run, original.n)
    yield Section(TITLE, [*([warning] if warning else []), about, STATEMENT], _undefended(original))
    resampled = _PEAKS.format(resamples=RESAMPLES)
    yield Section(f"At each network's peak, n = {original.n}", [resampled, _PAIRED], _at_peaks(found))
    yield Section(
        f"At fixed budgets: accuracy in per cent, with Wilson 95 % intervals, n = {original.n}", [], _fixed(found)
    )
    if claims := findings(found):
        yield claims_section(claims, f"{about} {_CLAIMS}", reduced=bool(warning))
    yield Section("Notes", items=_NOTES)
    changes = [_changed(one, original) for one in found[1:]]
    diverged = {one.title: sum(record.status == "diverged" for record in one.run.records) for one in found}
    told = [f"{title}: {n} reconstructions diverged, and count as wrong" for title, n in diverged.items() if n]
    yield Section("How it was measured", items=[*provenance(_joined(found)), *changes, *told])


def _joined(found: Sequence[Outcomes]) -> Run:
    """All networks' records as one run with the original's configuration."""
    places = {(one.name, session): place for place, (one, session) in enumerate(_sessions(found))}
    records = [replace(r, session=places[one.name, r.session]) for one in found for r in one.run.records]
    sessions = {places[one.name, session]: one.run.sessions[session] for one, session in _sessions(found)}
    original = found[0].run
    return Run(original.configuration, tuple(records), sessions, original.skipped)


def _sessions(found: Sequence[Outcomes]) -> Iterator[tuple[Outcomes, int]]:
    return ((one, session) for one in found for session in one.run.sessions)


def _changed(one: Outcomes, original: Outcomes) -> str:
    """The fields in which a variant differs from the original, with both values."""
    own, others = (asdict(each.config) for each in (one, original))
    changes = [f"{name} {own[name]} instead of {others[name]}" for name in own if own[name] != others[name]]
    return f"{one.title}: {', '.join(changes)}"


def _undefended(original: Outcomes) -> Rows:
    """No defence beside the original network, on clean images and under attack."""
    header = ["", *map(condition_title, original.conditions), "seconds an image"]
    rows = []
    for title, budget in (("no defence", 0), (f"original, {original.peak.budget} iterations", original.peak.budget)):
        cells = [original.cells.get((condition, budget)) for condition in original.conditions]
        known = [cell for cell in cells if cell]
        if known:
            seconds = f"{median(cell.seconds for cell in known):.3g}"
            rows.append([title, *(cell.percent if cell else "–" for cell in cells), seconds])
    return [header, *rows]


def _at_peaks(found: Sequence[Outcomes]) -> Rows:
    original = found[0]
    conditions = original.conditions
    header = ["network", "parameters", "peak, iterations"]
    header += [f"{condition_title(name)}: accuracy, %" for name in conditions]
    header += [f"{condition_title(name)}: confidence" for name in conditions]
    header += [f"{condition_title(name)}: points against the original" for name in conditions]
    rows = []
    for one in found:
        budget, low, high = one.peak
        row = [one.title, f"{parameters(one):,}", f"{budget} [{low}, {high}]"]
        row += [one.at_peak(name).percent for name in conditions]
        row += [f"{one.confidence(name, budget):.3f}" for name in conditions]
        row += ["" if one is original else _points(one, original, name) for name in conditions]
        rows.append(row)
    return [header, *rows]


def _points(one: Outcomes, original: Outcomes, condition: str) -> str:
    shown = contrast(one, original, condition)
    value, low, high = (100 * number for number in shown.difference)
    more, less, p = shown.split
    return f"{value:+.0f} [{low:+.0f}, {high:+.0f}], {more} : {less}, p = {p:.2g}"


def parameters(one: Outcomes) -> int:
    """Of each image's network."""
    channels, height, width = one.run.configuration["input"]
    return one.config.parameter_count(image_channels=channels, scales=one.config.scales_for(height, width))


def _fixed(found: Sequence[Outcomes]) -> Rows:
    budgets = shown_budgets(found[0].budgets)
    conditions = found[0].conditions
    header = ["network", *(f"{condition_title(name)}, {budget}" for name in conditions for budget in budgets)]
    return [
        header,
        *([one.title, *(one.cells[name, b].percent for name in conditions for b in budgets)] for one in found),
    ]
