"""The speed benchmark's records as one CSV, and each device's newest in Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

COLUMNS = (
    "device", "torch", "commit", "started", "setting", "contender", "precision", "batch",
    "seconds", "low", "high", "speedup", "peak MiB",
)  # fmt: skip
"""Seconds are for an image and 1,000 iterations: median, lowest and highest round. The speed-up is over the published
loop."""

_SHOWN = ("device", "torch", "setting", "contender", "batch", "seconds", "low", "high", "speedup")


def rows(records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for every timed contender of every record, the oldest record first."""
    for record in sorted(records, key=lambda record: record["circumstances"]["started"]):
        circumstances = record["circumstances"]
        about = {
            "device": circumstances["hardware"],
            "torch": circumstances["versions"]["torch"],
            "commit": circumstances["commit"][:12],
            "started": circumstances["started"],
        }
        for row in record["results"]:
            if "skipped" not in row:
                own = {name: row[name] for name in ("setting", "contender", "precision", "batch")}
                seconds, speedup = row["seconds"], row["speedup"]["median"]
                times = {"seconds": seconds["median"], "low": seconds["low"], "high": seconds["high"]}
                memory = "" if row["peak_memory_mib"] is None else round(row["peak_memory_mib"])
                yield about | own | {name: f"{value:.4g}" for name, value in times.items()} | {
                    "speedup": f"{speedup:.2f}", "peak MiB": memory,
                }  # fmt: skip


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's records.

    Raises:
        OSError, ValueError: a file cannot be read as a record.
    """
    return list(rows(json.loads(path.read_text()) for path in folder.glob("speed-*.json")))


def as_csv(found: Iterable[Mapping[str, Any]]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def as_markdown(found: Iterable[Mapping[str, Any]]) -> str:
    """The library's own fastest row of each device and setting, as a Markdown table.

    Each row is from the newest record that has the device and the setting.
    """
    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in found:
        if row["contender"].startswith("dipdefense"):
            place = row["device"], row["setting"]
            known = newest.get(place)
            if known is None or row["started"] > known["started"] or float(row["seconds"]) < float(known["seconds"]):
                newest[place] = row
    lines = ["| " + " | ".join(_SHOWN) + " |", "| --- " * len(_SHOWN) + "|"]
    lines += ["| " + " | ".join(str(row[name]) for name in _SHOWN) + " |" for row in newest.values()]
    return "\n".join(lines)
