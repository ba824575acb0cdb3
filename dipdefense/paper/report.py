"""Tables and plots of one run from its records alone: text, Markdown, CSV, PNG.

Every number has its n and its 95 % interval, and the published ones have columns of their own.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from dipdefense.evaluation import Run
from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.report import Rows, Section, markdown, png, provenance, text, write_files
from dipdefense.evaluation.report import table as markdown_table
from dipdefense.evaluation.statistics import Cell, compare, sanity_checks, spread
from dipdefense.paper.claims import Finding, findings
from dipdefense.paper.labels import (
    TITLES,
    banner,
    column_title,
    columns,
    network,
    published_title,
    shown,
    subject,
)
from dipdefense.paper.plots import accuracy_by_budget, bars, clean_confidences, recovery_by_confidence
from dipdefense.paper.published import (
    CLASSIFIER,
    IMAGES,
    NOTES,
    Published,
    about_parameters,
    beside,
    printed_columns,
    printed_number,
)
from dipdefense.paper.tables import ADVERSARIES, table_cells

STATEMENT = (
    "Defence-unaware: the attacks were crafted on the undefended classifier, by an attacker who does not know of the "
    "defence. Accuracy under such attacks is not robustness: randomisation falls to 0 % once the attacker averages "
    "over its random draws (Athalye et al. 2018), and nine adaptive test-time defences gained nothing significant over "
    "their static models when attacked as what they are (Croce et al. 2022)."
)
_PAIRED = (
    "On the same images: how many only the reconstruction classifies correctly : how many only the other does, and the "
    "exact two-sided McNemar p of so uneven a split. First seed; not corrected for the number of comparisons."
)

_CLAIMS = (
    "That one number is above another is tested on the same images (exact McNemar test, or sign test of an average; "
    "two-sided, corrected within a claim by Holm's procedure; first seed; behind the numbers, how many images only the "
    "first way classifies correctly : how many only the second). Confirmed: all that the claim speaks of was measured "
    "and goes its way with p < 0.05. Contradicted: a comparison goes the other way with p < 0.05. A published number "
    "is held against the 95 % interval of the measured one; the verdict is that of the most iterations."
)
_REDUCED_CLAIMS = (
    "The setting is reduced (see the top): a verdict is on this setting and neither confirms nor contradicts the paper."
)

# Budgets that make a curve.
_CURVE = 4

Numbers = Sequence[Published]


def write_report(run: Run, *, table: int, folder: Path) -> list[Path]:
    """Write table{1,2}.txt, .md, .csv and .png, and the records in table{1,2}.jsonl.

    All the others come from the records. Of a run with the reconstruction at four budgets or more there are two figures
    besides: accuracy against the budget, and, if it has the undefended clean images, recovery against their confidence.

    Args:
        run: from ``measure`` or, to write a report once more, from ``read_export``.
        table: 1 or 2.
        folder: made if need be.

    Raises:
        ValueError: there are no records, or not every image has been through everything.
        ImportError: Matplotlib is missing.
    """
    name = f"table{table}"
    files: dict[str, str | bytes] = {
        f"{name}.txt": as_text(run, table=table),
        f"{name}.md": as_markdown(run, table=table),
        f"{name}.csv": as_csv(run),
        f"{name}.png": png(bars(run, table=table)),
    }
    if len({record.budget for record in run.records if record.defence == "dip"}) >= _CURVE:
        files[f"{name}-budgets.png"] = png(accuracy_by_budget(run))
        if clean_confidences(run):
            files[f"{name}-confidence.png"] = png(recovery_by_confidence(run))
    return write_files(folder, files, {f"{name}.jsonl": run})


def as_text(run: Run, *, table: int) -> str:
    """The report for a terminal, with every number on a line of its own."""
    return text(_sections(run, table, _one_number_a_line))


def as_markdown(run: Run, *, table: int) -> str:
    """The report in Markdown, laid out as the paper's table is.

    The published numbers are to the right.
    """
    return markdown(_sections(run, table, _as_in_the_paper))


def as_csv(run: Run) -> str:
    """Every number on a line of its own, for programs.

    The columns that the reports leave out are here too.
    """
    header, *rows = _one_number_a_line(table_cells(run), _beside(run))
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*header, "classifier", "setting"])
    writer.writerows([*row, run.configuration["classifier"], "defence-unaware"] for row in rows)
    return lines.getvalue()


def headline(run: Run) -> str:
    """A README's table, in Markdown: accuracy beside the published numbers.

    The line above it says what was measured on what.
    """
    cells = shown(table_cells(run))
    about = " ".join([*banner(run, cells), subject(run, cells[0].n), "Accuracy in per cent, Wilson 95 % intervals."])
    return "\n".join([about, "", *markdown_table(_as_in_the_paper(cells, _beside(run)))])


def _sections(run: Run, table: int, layout: Callable[[Sequence[Cell], Numbers], Rows]) -> Iterator[Section]:
    everything = table_cells(run)
    cells, published = shown(everything), _beside(run)
    yield Section(TITLES[table], [*banner(run, cells), subject(run, cells[0].n), STATEMENT], _at_a_glance(cells))
    seeds = max(len(cell.outcomes) for cell in cells)
    captions = [
        f"Published: {CLASSIFIER}, n = {IMAGES}; randomisation as quoted there, of another classifier."
        if published
        else "The published numbers are of ImageNet and of images many times as large; none stand here."
    ]
    captions += [f"Where the defence is random, the mean over {seeds} seeds."] if seeds > 1 else []
    yield Section(
        f"Accuracy in per cent, with Wilson 95 % intervals, n = {cells[0].n}", captions, layout(cells, published)
    )
    if len(pairs := _pairs(cells)) > 1:
        yield Section("Paired comparisons", [_PAIRED], pairs)
    if claims := findings(everything, published):
        yield claims_section(claims, f"{subject(run, cells[0].n)} {_CLAIMS}", reduced=bool(banner(run, cells)))
    yield _seeds(cells)
    diverged = Counter(record.status for record in run.records)["diverged"]
    checks = [f"{'passed' if passed else 'FAILED'}: {check}" for check, passed in sanity_checks(cells)]
    yield Section(
        "Sanity checks of the attacks, on the undefended classifier",
        items=[*checks, f"{diverged} reconstructions diverged, and count as wrong"],
    )
    notes = list(NOTES)
    if any(cell.defence == "dip" for cell in cells):
        notes += about_parameters(network(run), run.configuration["input"])
    yield Section("Notes", items=notes)
    yield Section("How it was measured", items=list(provenance(run)))


def claims_section(claims: Sequence[Finding], about: str, *, reduced: bool) -> Section:
    """The paper's claims with their verdicts.

    Args:
        claims: decided.
        about: the subject, and how it was decided.
        reduced: whether the setting is less than the paper's.
    """
    about = f"{about} {_REDUCED_CLAIMS}" if reduced else about
    where = " in this setting" if reduced else ""
    listed = ["\n".join([f"{c.verdict.upper()}{where}: {c.claim}", *c.details]) for c in claims]
    return Section("The paper's claims, for this classifier and setting", [about], items=listed)


def _beside(run: Run) -> Numbers:
    return beside(run.configuration["input"])


def _at_a_glance(cells: Sequence[Cell]) -> Rows:
    """Accuracy undefended and defended, clean and attacked, and seconds an image.

    They always stand beside each other.
    """
    found = {(cell.condition, cell.column): cell for cell in cells}
    measured = {cell.condition for cell in cells}
    attacked = [name for name in (*ADVERSARIES, "average") if name in measured]
    glanced = [name for name in ("clean", *attacked[-1:]) if name in measured]
    header = ["defence", *(condition_title(name) for name in glanced), "seconds an image"]
    rows = []
    for column in columns(cells):
        seconds = median(cell.seconds for cell in cells if cell.column == column)
        rows.append([column_title(*column), *(found[name, column].percent for name in glanced), f"{seconds:.3g}"])
    return [header, *rows]


def _one_number_a_line(cells: Sequence[Cell], published: Numbers) -> Rows:
    """Every number by itself, for text and CSV."""
    rows = [["condition", "defence", "n", "accuracy, %", "from", "to", "published, %", "by", "seconds an image"]]
    for cell in cells:
        percents = (f"{100 * share:.1f}" for share in (cell.accuracy, *cell.interval))
        theirs = printed_number(cell.condition, *cell.column, published)
        printed = [f"{theirs.percent:.1f}", theirs.source] if theirs else ["", ""]
        titles = (condition_title(cell.condition), column_title(*cell.column))
        rows.append([*titles, str(cell.n), *percents, *printed, f"{cell.seconds:.3g}"])
    return rows


def _as_in_the_paper(cells: Sequence[Cell], published: Numbers) -> Rows:
    """A row for each condition; the measured columns, then the published ones."""
    found = {(cell.condition, cell.column): cell for cell in cells}
    measured = columns(cells)
    printed = printed_columns({cell.condition for cell in cells}, published)
    header = ["condition", *(column_title(*column) for column in measured)]
    header += [published_title(*column) for column in printed]
    rows = []
    for condition in dict.fromkeys(cell.condition for cell in cells):
        row = [condition_title(condition)]
        for column in measured:
            row.append(found[condition, column].percent)
        theirs = [printed_number(condition, *column, published) for column in printed]
        rows.append([*row, *(f"{number.percent:.1f}" if number else "–" for number in theirs)])
    return [header, *rows]


def _pairs(cells: Sequence[Cell]) -> Rows:
    """Paired tests of the reconstruction at every budget.

    They are against no defence, randomisation at its most passes, and the filters.
    """
    found = {(cell.condition, cell.column): cell for cell in cells}
    others = [column for column in columns(cells) if column[0] == "none"]
    others += [column for column in columns(cells) if column[0] == "randomisation"][-1:]
    others += [column for column in columns(cells) if column[0] == "low-pass"]
    if not others:
        return []
    rows = [["condition", "defence", *(f"against {column_title(*other)}" for other in others)]]
    for cell in cells:
        if cell.defence == "dip" and cell.condition != "average":
            tests = [compare(cell, found[cell.condition, other]) for other in others]
            splits = [f"{more} : {less}, p = {p:.2g}" for more, less, p in tests]
            rows.append([condition_title(cell.condition), column_title(*cell.column), *splits])
    return rows


def _seeds(cells: Sequence[Cell]) -> Section:
    random = {cell.column for cell in cells if len(cell.outcomes) > 1}
    count = max(len(cell.outcomes) for cell in cells)
    title = "Seeds of the defence"
    if count == 1:
        return Section(title, ["One seed: the spread over the defence's seeds is unknown; --seed 0 1 2 measures it."])
    found = {(cell.condition, cell.column): cell for cell in cells}
    shown = [column for column in columns(cells) if column in random]
    rows = [["condition", *(column_title(*column) for column in shown)]]
    for condition in dict.fromkeys(cell.condition for cell in cells):
        numbers = [spread(found[condition, column].by_seed) for column in shown]
        rows.append(
            [condition_title(condition), *(f"{100 * m:.1f} ± {100 * d:.1f}, {100 * w:.1f}" for m, d, w in numbers)]
        )
    return Section(title, [f"Mean ± standard deviation, and the worst, of {count} seeds, in per cent."], rows)
