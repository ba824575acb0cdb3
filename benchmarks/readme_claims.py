"""One table of the paper's claims and the records' verdicts, from the reports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from dipdefense.evaluation.report import table
from dipdefense.paper.claims import CONFIRMED, CONTRADICTED, LARGER, SAME, SMALLER, UNDECIDED

ITEMS = {
    "figure1.md": "Figure 1",
    "table1.md": "Table 1",
    "table2.md": "Tables 1 and 2",
    "figure3.md": "Figure 3",
    "architecture.md": "Section 6",
}
"""The reports with claims, in the paper's order."""

VERDICTS = {CONFIRMED: (CONFIRMED, SAME), CONTRADICTED: (CONTRADICTED, LARGER, SMALLER), UNDECIDED: (UNDECIDED,)}
"""The columns of the table, and the verdicts that belong to each."""

VERDICT = "|".join(verdict.upper() for each in VERDICTS.values() for verdict in each)
"""A pattern of all of them, as the reports print them."""

# The verdict, the claim, and the figures on the line below.
_CLAIM = re.compile(
    rf"^- ({VERDICT})(?: in this setting|, architecture \d)?: (.*?) \((?:section|not in|the )[^\n]*\n([^\n]*)",
    flags=re.MULTILINE,
)
_BEYOND_THE_PAPER = "random-target"
"""A set of images of which the paper claims nothing."""


def claims(results: Path) -> Iterator[tuple[str, str, str, str]]:
    """Item, claim, verdict and folder of each claim in the reports below ``results``."""
    for report, item in ITEMS.items():
        for path in sorted(results.glob(f"*/{report}")):
            for verdict, claim, figures in _CLAIM.findall(path.read_text()):
                if _BEYOND_THE_PAPER not in figures:
                    yield item, claim, verdict.lower(), path.parent.name


def as_markdown(results: Path) -> str:
    """For each claim, the records that confirm it, contradict it or leave it open."""
    rows: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for item, claim, verdict, folder in claims(results):
        rows.setdefault((item, claim), []).append((verdict, f"`{folder}`"))
    told = [
        [*row, *(", ".join(folder for verdict, folder in found if verdict in own) or "–" for own in VERDICTS.values())]
        for row, found in rows.items()
    ]
    return "\n".join(table([["item", "claim", *VERDICTS], *told]))
