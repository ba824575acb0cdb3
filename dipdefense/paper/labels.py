"""Titles in reports and figures, and the recorded columns that they show."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dipdefense.config import DIPConfig
from dipdefense.evaluation.records import Run
from dipdefense.evaluation.report import reduced_setting
from dipdefense.evaluation.statistics import Cell
from dipdefense.paper.published import reductions

TITLES = {
    1: "Table 1: top-1 accuracy on clean images (defence-unaware evaluation)",
    2: "Table 2: top-1 accuracy under defence-unaware attacks",
}

Column = tuple[str, int]

# Budgets that a table has room for, and the step of those that it shows where more were recorded.
_ROOM, _STEP = 6, 250


def shown_budgets(budgets: Collection[int]) -> list[int]:
    """The recorded budgets that tables show.

    All are shown if there are few, else the multiples of 250, else the largest.

    Example:
        >>> shown_budgets([100, 200, 300]), shown_budgets(range(50, 1001, 50))
        ([100, 200, 300], [250, 500, 750, 1000])
    """
    ascending = sorted(set(budgets))
    if len(ascending) <= _ROOM:
        return ascending
    return [budget for budget in ascending if budget % _STEP == 0] or ascending[-1:]


def shown(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that tables show."""
    budgets = shown_budgets({cell.budget for cell in cells if cell.defence == "dip"})
    return [cell for cell in cells if cell.defence != "dip" or cell.budget in budgets]


def columns(cells: Sequence[Cell]) -> list[Column]:
    """The measured columns, in order."""
    return list(dict.fromkeys(cell.column for cell in cells))


def column_title(defence: str, budget: int) -> str:
    """The title of a defence at a budget.

    Example:
        >>> column_title("dip", 500), column_title("randomisation", 30), column_title("low-pass", 3)
        ('DIP 500', 'randomisation ×30', 'low-pass 1/3')
    """
    titles = {
        "none": "no defence",
        "randomisation": f"randomisation ×{budget}",
        "low-pass": f"low-pass 1/{budget}",
        "dip": f"DIP {budget}",
    }
    return titles.get(defence, f"{defence} {budget}")


def published_title(defence: str, budget: int) -> str:
    """The title of a published column."""
    return f"published: {column_title(defence, budget)}{', quoted' if defence == 'randomisation' else ''}"


def network(run: Run) -> DIPConfig:
    """The reconstruction's network, from the run's configuration.

    Raises:
        ValueError: there is none in it, or it could not be built.
    """
    try:
        return DIPConfig.from_json(run.configuration["dip"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the run's configuration has no network of the reconstruction: {error!r}") from error


def banner(run: Run, cells: Sequence[Cell]) -> list[str]:
    """The warning that a setting is not the paper's, or nothing."""
    budgets = [budget for defence, budget in columns(cells) if defence == "dip"]
    # A network that nothing was reconstructed with reduces nothing.
    config = network(run) if budgets else DIPConfig.paper()
    reduced = reductions(
        config, images=cells[0].n, budgets=budgets, shape=run.configuration["input"],
        stopping=run.configuration.get("stopping"),
    )  # fmt: skip
    return reduced_setting(reduced)


def subject(run: Run, n: int) -> str:
    """Classifier, images and setting, in words; ``n`` is the number of images."""
    configuration = run.configuration
    data = configuration["data"]
    source = data if data.startswith("packaged") else f'"{data}"'
    return (
        f"Classifier: {configuration['classifier']}. Images: {n} of {source} that it "
        "classifies correctly. Setting: defence-unaware."
    )
