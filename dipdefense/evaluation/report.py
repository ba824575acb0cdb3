"""Parts of any report: sections as text and Markdown, pictures, and provenance."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dipdefense.evaluation.exports import export
from dipdefense.evaluation.records import Run
from dipdefense.files import write_atomically
from dipdefense.pictures import with_palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Sequence[str]]

_WIDTH = 110


def reduced_setting(reasons: Sequence[str]) -> list[str]:
    """The warning that a setting is not the paper's, or nothing where it is.

    Args:
        reasons: how it falls short of the paper's or differs from it.

    Example:
        >>> reduced_setting(["20 images instead of 500"]), reduced_setting([])
        (["REDUCED SETTING, NOT THE PAPER'S: 20 images instead of 500."], [])
    """
    return [f"REDUCED SETTING, NOT THE PAPER'S: {'; '.join(reasons)}."] if reasons else []


class Section(NamedTuple):
    """A part of a report: paragraphs, then a table, then a list.

    The table's first row is its header. An item's lines after its first are a list of their own below it.
    """

    title: str
    paragraphs: Sequence[str] = ()
    table: Rows = ()
    items: Sequence[str] = ()


def text(sections: Iterable[Section]) -> str:
    """The sections for a terminal.

    Example:
        >>> print(text([Section("Numbers", table=[["a", "b"], ["1", "2"]])]))
        Numbers
        =======
        a  b
        1  2
        <BLANKLINE>
    """
    lines: list[str] = []
    for section in sections:
        lines += [section.title, "=" * len(section.title)]
        for paragraph in section.paragraphs:
            lines += [*textwrap.wrap(paragraph, _WIDTH, break_on_hyphens=False), ""]
        widths = [max(map(len, column)) for column in zip(*section.table, strict=True)]
        for row in section.table:
            padded = (value.ljust(width) for value, width in zip(row, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
        for item in section.items:
            first, *below = item.splitlines()
            lines += textwrap.wrap(first, _WIDTH, initial_indent="- ", subsequent_indent="  ")
            for line in below:
                lines += textwrap.wrap(line, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
        lines.append("")
    return "\n".join(lines)


def markdown(sections: Iterable[Section]) -> str:
    """The sections in Markdown, the first with the title of the page.

    Example:
        >>> print(markdown([Section("Numbers", table=[["a", "b"], ["1", "2"]])]))
        # Numbers
        <BLANKLINE>
        | a | b |
        | --- | --- |
        | 1 | 2 |
        <BLANKLINE>
    """
    lines: list[str] = []
    for section in sections:
        lines += [f"{'##' if lines else '#'} {section.title}", ""]
        for paragraph in section.paragraphs:
            lines += [paragraph, ""]
        if section.table:
            lines += [*table(section.table), ""]
        if section.items:
            lines += [*("\n  - ".join(f"- {item}".splitlines()) for item in section.items), ""]
    return "\n".join(lines)


def table(rows: Rows) -> list[str]:
    """The lines of a table in Markdown; the first row is the header."""
    header, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "|" + " --- |" * len(rows[0]), *rest]


def png(figure: Figure) -> bytes:
    """The figure as a PNG of 150 dots an inch, in 256 colours to keep records small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return with_palette(buffer.getvalue())


def write_files(folder: Path, files: Mapping[str, str | bytes], runs: Mapping[str, Run]) -> list[Path]:
    """Write a report's files and the records that it is of; their paths, in order.

    Args:
        folder: made if need be.
        files: what each file has, by name.
        runs: what each file of records has, by name; written first, for the others can be made of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, run in runs.items():
        export(run, folder / name)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in (*files, *runs)]


def provenance(run: Run) -> Iterator[str]:
    """The configuration of a run, its seeds, circumstances and skipped images.

    Each set of circumstances comes with the number of outcomes that it gave.
    """
    for name, value in sorted(run.configuration.items()):
        yield f"{name}: {_plain(value)}"
    yield f"defence seeds: {', '.join(map(str, sorted({record.seed for record in run.records})))}"
    alike: Counter[str] = Counter()
    for session, outcomes in sorted(Counter(record.session for record in run.records).items()):
        # Two sessions that differ in nothing but their time are one to a reader; the exported records tell them apart.
        same = {name: value for name, value in run.sessions[session].items() if name != "started"}
        alike[_plain(same)] += outcomes
    for circumstances, outcomes in alike.items():
        yield f"{outcomes} outcomes with {circumstances}"
    if run.skipped:
        yield f"{len(run.skipped)} images could not be read and were skipped: {', '.join(run.skipped)}"


def _plain(value: object) -> str:
    """A stored value, for readers."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in sorted(value.items()))
    if isinstance(value, list):
        return f"({', '.join(map(_plain, value))})"
    return f"{value:.6g}" if isinstance(value, float) else "all" if value is None else str(value)
