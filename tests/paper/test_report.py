"""Reports of made-up records: numbers, n, intervals, published ones and caveats."""

from __future__ import annotations

import csv
import dataclasses
import random
from pathlib import Path

import pytest
from measuring import CIRCUMSTANCES, made_up

from dipdefense import DIPConfig
from dipdefense.evaluation import Run, read_export
from dipdefense.evaluation.statistics import compare, sanity_checks, wilson
from dipdefense.paper.plots import bars
from dipdefense.paper.published import QUOTED, THIS_PAPER
from dipdefense.paper.report import as_markdown, as_text, headline, write_report
from dipdefense.paper.tables import ADVERSARIES, TABLES, table_cells

BASELINES = ["no defence", "randomisation ×1", "randomisation ×30", "low-pass 1/2", "low-pass 1/3"]


def row(markdown: str, section: str, condition: str) -> list[str]:
    """The cells of the first line of a section's table that begins so."""
    lines = markdown[markdown.index(section) :].splitlines()
    line = next(line for line in lines if line.startswith(f"| {condition} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_number_has_its_interval_and_the_published_one_beside_it() -> None:
    run = made_up()
    markdown = as_markdown(run, table=2)
    assert "n = 40" in markdown
    header = row(markdown, "## Accuracy", "condition")
    measured = [*BASELINES, "DIP 500", "DIP 750", "DIP 1000"]
    published = ["no defence", "randomisation ×1, quoted", "DIP 500", "DIP 750", "DIP 1000"]
    assert header == ["condition", *measured, *(f"published: {title}" for title in published)]
    cells = row(markdown, "## Accuracy", "FGSM ε=5")
    assert cells[9:] == ["3.5", "54.5", "61.2", "69.0", "70.1"]
    outcomes = [r for r in run.records if (r.condition, r.defence, r.budget) == ("fgsm-5", "dip", 750)]
    right = sum(r.correct for r in outcomes)
    low, high = wilson(right / 40, 40)
    assert cells[7] == f"{100 * right / 40:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert row(markdown, "## Accuracy", "BI ε=10")[9:11] == ["0.2", "–"]


def test_beside_small_images_no_published_number_stands() -> None:
    run = made_up(shape=(3, 32, 32), config=DIPConfig.architecture_1())
    markdown, text = as_markdown(run, table=2), as_text(run, table=2)
    measured = [*BASELINES, "DIP 500", "DIP 750", "DIP 1000"]
    assert row(markdown, "## Accuracy", "condition") == ["condition", *measured]
    tables_and_claims = text[: text.index("Sanity checks")]
    for words in (THIS_PAPER, QUOTED, "(published", ", published", "61.2"):
        assert words not in tables_and_claims
    assert "61.2" not in headline(run)
    labels = [entry.get_text() for entry in bars(run, table=2).legends[0].get_texts()]
    assert labels == measured


def test_the_average_is_over_the_adversaries_alone() -> None:
    run = made_up()
    cells = table_cells(run)
    average = next(cell for cell in cells if cell.condition == "average" and cell.column == ("dip", 500))
    members = [r.correct for r in run.records if r.condition in ADVERSARIES and (r.defence, r.budget) == ("dip", 500)]
    assert len(members) == 200
    assert average.accuracy == pytest.approx(sum(members) / 200)
    assert average.n == 40
    assert not any(cell.condition == "average" for cell in table_cells(made_up(conditions=TABLES[2][:5])))


def test_conditions_stand_in_the_papers_order_with_the_controls_last() -> None:
    made = made_up(images=1)
    backwards = dataclasses.replace(made, records=made.records[::-1])
    order = list(dict.fromkeys(cell.condition for cell in table_cells(backwards)))
    assert order == ["clean", *ADVERSARIES, "average", "noise-2", "noise-5", "noise-10"]


@pytest.mark.parametrize("table", [1, 2])
@pytest.mark.parametrize("form", [as_text, as_markdown], ids=["text", "Markdown"])
def test_what_every_report_says(table: int, form) -> None:
    report = " ".join(form(made_up(conditions=TABLES[table]), table=table).split())
    for words in (
        "defence-unaware",
        "is not robustness",
        "efficientnet-lite0",
        "quoted there from Xie et al. 2017, for another classifier",
        "claimed for ResNet18 on 500 images",
        "2,217,831 parameters",
        *CIRCUMSTANCES.values(),
        "defence seeds: 0",
        "selection seed: 0",
    ):
        assert words in report
    glance = report[: report.index("Accuracy in per cent")]
    for words in ("no defence", "DIP 1000", "clean", "seconds an image", "BI ε=10" if table == 1 else "average"):
        assert words in glance


REDUCED = {
    "images": ({"images": 20}, "20 images instead of 500"),
    "budgets": ({"budgets": (100, 200)}, "200 iterations at most instead of 1000"),
    "network": ({"config": DIPConfig(scales=5, channels=32)}, "channels 32 instead of 128"),
    "scales": ({"config": DIPConfig.architecture_1()}, "scales 3 instead of 5"),
    "pixels": ({"shape": (3, 64, 96)}, "96×64 pixels instead of 224×224"),
}


@pytest.mark.parametrize(("changes", "words"), REDUCED.values(), ids=REDUCED)
def test_a_reduced_setting_is_named_at_the_top(changes: dict, words: str) -> None:
    for form in (as_text, as_markdown):
        top = " ".join(form(made_up(conditions=TABLES[1], **changes), table=1).split())[:400]
        assert "REDUCED SETTING, NOT THE PAPER'S" in top
        assert words in top


def test_the_papers_own_setting_is_not_called_reduced() -> None:
    assert "REDUCED" not in as_text(made_up(images=500, conditions=TABLES[1]), table=1)


def test_the_appendixs_parameter_count_is_corrected_where_it_matters() -> None:
    report = as_markdown(made_up(conditions=("clean",), config=DIPConfig.architecture_2()), table=1)
    assert "has 26,575 parameters" in report
    assert "print 2,217,831 parameters for both of its 3-scale networks" in report
    assert "appendix" not in as_markdown(made_up(conditions=("clean",)), table=1)


def test_seeds_are_reported_with_mean_spread_and_worst() -> None:
    run = made_up(seeds=(0, 1, 2), conditions=("clean",))
    report = as_markdown(run, table=1)
    (accuracies,) = [cell.by_seed for cell in table_cells(run) if cell.column == ("dip", 500)]
    assert len(set(accuracies)) > 1
    mean = sum(accuracies) / 3
    deviation = (sum((a - mean) ** 2 for a in accuracies) / 2) ** 0.5
    expected = f"{100 * mean:.1f} ± {100 * deviation:.1f}, {100 * min(accuracies):.1f}"
    assert row(report, "## Seeds", "clean")[3] == expected
    # The interval is of the images, the independent units, and not of three times as many.
    low, high = wilson(mean, 40)
    assert row(report, "## Accuracy", "clean")[6] == f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    # A filter has no random numbers, and so no seeds to differ.
    assert "low-pass" not in report.split("## Seeds")[1].split("##")[0]
    assert "spread over the defence's seeds is unknown" in as_markdown(made_up(conditions=("clean",)), table=1)


def test_paired_tests_are_of_the_same_images_with_the_first_seed() -> None:
    run = made_up(conditions=("fgsm-2",), seeds=(0, 1))
    right = {
        column: {r.image for r in run.records if (r.defence, r.budget, r.seed) == (*column, 0) and r.correct}
        for column in (("randomisation", 30), ("dip", 1000))
    }
    more = right["dip", 1000] - right["randomisation", 30]
    less = right["randomisation", 30] - right["dip", 1000]
    shuffled = list(run.records)
    random.Random(1).shuffle(shuffled)
    for records in (run.records, shuffled):
        cells = {cell.column: cell for cell in table_cells(dataclasses.replace(run, records=tuple(records)))}
        split = compare(cells["dip", 1000], cells["randomisation", 30])[:2]
        assert split == (len(more), len(less))
        assert min(split) > 0
    report = as_markdown(run, table=2)
    line = next(line for line in report.splitlines() if line.startswith("| FGSM ε=2 | DIP 1000 |"))
    assert f"| {len(more)} : {len(less)}, p = " in line


def test_a_reconstruction_alone_has_no_paired_comparisons() -> None:
    run = made_up()
    alone = dataclasses.replace(run, records=tuple(r for r in run.records if r.defence == "dip"))
    assert "Paired comparisons" not in as_markdown(alone, table=2)


def test_a_failed_sanity_check_is_printed() -> None:
    run = made_up()
    assert all(passed for _, passed in sanity_checks(table_cells(run)) if "clean" not in _)
    weak = [dataclasses.replace(r, prediction=3) if r.condition == "bi-10" else r for r in run.records]
    report = as_markdown(Run(run.configuration, tuple(weak), run.sessions), table=2)
    assert "- FAILED: BI ε=10 is at least as strong as FGSM ε=10" in report
    assert "- FAILED: BI ε=10 is stronger than random noise of its norm" in report
    assert "- passed: FGSM ε=10 is stronger than random noise of its norm" in report
    assert "- passed: FGSM is at least as strong with a larger ε" in report
    leaky = [dataclasses.replace(r, prediction=3) if r.condition == "fgsm-10" else r for r in run.records]
    report = as_markdown(Run(run.configuration, tuple(leaky), run.sessions), table=2)
    assert "- FAILED: FGSM is at least as strong with a larger ε" in report


@pytest.mark.parametrize(
    ("conditions", "shown"),
    [
        (("clean", "bi-10", "noise-10", "bi-10-8bit"), ["clean", "BI ε=10"]),
        (("clean", *ADVERSARIES), ["clean", "average of the attacks"]),
        (("clean", "noise-10"), ["clean"]),
        (("fgsm-5",), ["FGSM ε=5"]),
    ],
)
def test_the_glance_has_the_clean_images_and_one_attack(conditions: tuple[str, ...], shown: list[str]) -> None:
    header = row(as_markdown(made_up(conditions=conditions, images=3), table=2), "# Table 2", "defence")
    assert header == ["defence", *shown, "seconds an image"]


def test_what_only_a_reconstruction_has_is_left_out_without_one() -> None:
    run = made_up(conditions=("clean", "bi-10"))
    rest = tuple(r for r in run.records if r.defence != "dip")
    for words in ("Paired comparisons", "The paper's claims", "2,217,831 parameters"):
        assert words in as_markdown(run, table=1)
        assert words not in as_markdown(Run(run.configuration, rest, run.sessions), table=1)


def test_diverged_reconstructions_are_counted() -> None:
    run = made_up(conditions=("clean",))
    first, *rest = run.records
    diverged = dataclasses.replace(first, status="diverged", prediction=-1, confidence=None)
    assert "1 reconstructions diverged" in as_markdown(Run(run.configuration, (diverged, *rest), run.sessions), table=1)


def test_a_configuration_without_a_network_is_refused_in_words() -> None:
    run = made_up(conditions=("clean",), images=3)
    for dip in ({}, {"betas": [0.9]}, run.configuration["dip"] | {"channels": 0}):
        broken = dataclasses.replace(run, configuration=run.configuration | {"dip": dip})
        with pytest.raises(ValueError, match="has no network of the reconstruction"):
            as_text(broken, table=1)


def test_an_unfinished_run_is_not_reported() -> None:
    run = made_up(conditions=("clean",))
    with pytest.raises(ValueError, match="some outcomes are of 39 images and some of 40; finish the run"):
        as_text(Run(run.configuration, run.records[1:], run.sessions), table=1)
    with pytest.raises(ValueError, match="no records"):
        as_text(Run(run.configuration, (), {}), table=1)


def test_tables_show_a_handful_of_many_budgets_and_the_csv_all(tmp_path: Path) -> None:
    run = made_up(images=5, budgets=range(50, 1001, 50), conditions=("clean", "bi-10"))
    header = row(as_markdown(run, table=1), "## Accuracy", "condition")
    assert [title for title in header if title.startswith("DIP")] == ["DIP 250", "DIP 500", "DIP 750", "DIP 1000"]
    assert "DIP 950" not in headline(run)
    files = {path.name: path for path in write_report(run, table=1, folder=tmp_path)}
    assert {"table1-budgets.png", "table1-confidence.png"} <= files.keys()
    budgets = {line["defence"] for line in csv.DictReader(files["table1.csv"].open())}
    assert {f"DIP {budget}" for budget in range(50, 1001, 50)} <= budgets


def test_files(tmp_path: Path) -> None:
    run = made_up(images=7)
    text, markdown, values, picture, records = write_report(run, table=2, folder=tmp_path / "new")
    assert text.read_text() == as_text(run, table=2)
    assert markdown.read_text() == as_markdown(run, table=2)
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(values.open()))
    assert len(rows) == 10 * 8
    assert {row["setting"] for row in rows} == {"defence-unaware"}
    quoted = next(r for r in rows if (r["condition"], r["defence"]) == ("FGSM ε=2", "randomisation ×1"))
    assert (quoted["published, %"], quoted["by"], quoted["n"]) == ("65.1", "Xie et al. 2017, quoted", "7")
    # The exported records are all that it takes to write the same report again.
    again = write_report(read_export(records), table=2, folder=tmp_path / "again")
    assert [path.read_bytes() for path in again] == [
        path.read_bytes() for path in (text, markdown, values, picture, records)
    ]
