"""The table of claims has every verdict of the reports."""

from __future__ import annotations

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


def test_every_verdict_is_found(tmp_path: Path) -> None:
    for folder, report in (("b", "table2.md"), ("a", "figure3.md")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / report).write_text(REPORT)
    claims = list(readme_claims.claims(tmp_path))
    assert claims[0] == ("Tables 1 and 2", "It holds (it does), says the paper", "confirmed", "b")
    assert claims[1][1:3] == ("It may hold", "not decidable yet")
    assert [claim[3] for claim in claims] == ["b", "b", "a", "a"]


def test_the_records_reports_are_read_whole() -> None:
    results = Path(readme_claims.__file__).parent / "results"
    text = "".join(path.read_text() for report in readme_claims.ITEMS for path in results.glob(f"*/{report}"))
    assert len(list(readme_claims.claims(results))) == text.count(" in this setting: ")
