"""The table of claims has every verdict of the reports."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import readme_claims

REPORT = """# Report

## The paper's claims

Confirmed, contradicted.

- CONFIRMED in this setting: It holds (it does), says the paper (section 4, Table 1: “quoted”)
  - clean: 1 against 2: confirmed
- NOT DECIDABLE YET in this setting: It may hold (the numbers of Table 2)
"""

AT_THE_PAPERS_SETTING = """# Report

- CONFIRMED: It may hold (the numbers of Table 2)
  - clean: 1 against 2: confirmed
"""


FIGURE_3 = """# Figure 3

- CONTRADICTED, architecture 2: It is faster (section 5, Figure 3: “quoted”)
  - against non-robust, n = 100: lower by -0.10
- CONFIRMED, architecture 2: It is faster (section 5, Figure 3: “quoted”)
  - against random-target, n = 100: lower by 0.10
"""


def test_every_verdict_is_found(tmp_path: Path) -> None:
    for folder, report, text in (
        ("b", "table2.md", REPORT),
        ("c", "table2.md", AT_THE_PAPERS_SETTING),
        ("a", "figure3.md", FIGURE_3),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / report).write_text(text)
    assert list(readme_claims.claims(tmp_path)) == [
        ("Tables 1 and 2", "It holds (it does), says the paper", "confirmed", "b"),
        ("Tables 1 and 2", "It may hold", "not decidable yet", "b"),
        ("Tables 1 and 2", "It may hold", "confirmed", "c"),
        ("Figure 3", "It is faster", "contradicted", "a"),
    ]


def test_the_records_reports_are_read_whole() -> None:
    results = Path(readme_claims.__file__).parent / "results"
    text = "".join(path.read_text() for report in readme_claims.ITEMS for path in results.glob(f"*/{report}"))
    beyond = len(re.findall(r"^  - (?:against )?random-target,", text, flags=re.MULTILINE))
    assert beyond > 0
    verdicts = len(
        re.findall(
            rf"^- (?:{readme_claims.VERDICT})(?: in this setting|, architecture \d)?: ", text, flags=re.MULTILINE
        )
    )
    assert len(list(readme_claims.claims(results))) == verdicts - beyond
