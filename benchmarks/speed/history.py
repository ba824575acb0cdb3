"""The time of an iteration at each of several commits, on a CPU.

    python benchmarks/speed/history.py 45fec81 43aecb8 HEAD
    python benchmarks/speed/history.py bf01599 HEAD --backend native

Times `dipdefense.reconstruct` in fp32 on random images, without the first iterations. Every commit has a checkout and
processes of its own, and the commits take turns, so a drift of the machine affects all of them. Needs git and this
repository with its history. Prints a Markdown table, medians over the rounds with their range, and writes a JSON record
with the rounds to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dipdefense.evaluation import circumstances
from dipdefense.files import write_atomically

ROOT = Path(__file__).parents[2]

# Preset, side, images at once, iterations.
SETTINGS = (
    ("paper", 224, 1, 12),
    ("compact", 224, 1, 20),
    ("architecture_1", 32, 16, 15),
    ("architecture_2", 32, 16, 60),
    ("architecture_2", 32, 1, 80),
)

# Run in each checkout: the median of the iterations' milliseconds, without the first two.
_TIMED = """
import statistics, sys, time, torch
from dipdefense import DIPConfig
from dipdefense.reconstruct import reconstruct
preset, (side, count, iterations, seed), backend = sys.argv[1], map(int, sys.argv[2:6]), sys.argv[6:]
torch.manual_seed(seed)
marks = []
reconstruct(
    torch.rand(count, 3, side, side), budgets=(iterations,), config=getattr(DIPConfig, preset)(), seed=seed,
    **({"backend": backend[0]} if backend else {}), on_iteration=lambda: marks.append(time.perf_counter()),
)
print(1000 * statistics.median(after - before for before, after in zip(marks[1:-2], marks[2:-1])))
"""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Time the commits, write the record, print it as a table, and return its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="+", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--settings", nargs="+", type=int, default=list(range(len(SETTINGS))), help="indices of the settings, from 0"
    )
    parser.add_argument("--iterations", type=int, help="instead of the settings' own, to try this script")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--backend", choices=["torch", "native"], help="default: the commit's own")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    given = parser.parse_args(arguments)
    settings = [SETTINGS[number] for number in given.settings]
    known = circumstances(torch.device("cpu"))
    record: dict[str, Any] = {
        "circumstances": known,
        "seed": given.seed,
        "backend": given.backend,
        "commits": {},
        "settings": [],
    }
    path: Path = given.out / f"history-cpu-{known['started'].split('+')[0].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with checkouts(given.commits) as folders:
        record["commits"] = {commit: subject for commit, (_, subject) in folders.items()}
        for preset, side, count, iterations in settings:
            timed = given.iterations or iterations
            rounds: dict[str, list[float]] = {commit: [] for commit in folders}
            for _ in range(given.rounds):
                for commit, (folder, _) in folders.items():
                    command = [preset, *map(str, (side, count, timed, given.seed))]
                    command += [given.backend] if given.backend else []
                    rounds[commit].append(milliseconds(folder, command))
            shape = {"preset": preset, "side": side, "batch": count, "iterations": timed}
            record["settings"].append(shape | {"milliseconds": rounds})
            write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(text(record))
    print(f"written: {path}")
    return path


@contextlib.contextmanager
def checkouts(commits: Sequence[str]) -> Iterator[dict[str, tuple[Path, str]]]:
    """Check out the commits; by short hash, each one's folder and subject.

    The folders are removed afterwards.

    Raises:
        ValueError: a name is not a commit of this repository.
    """
    found = {}
    with tempfile.TemporaryDirectory() as parent:
        try:
            for name in commits:
                described = _git("show", "--no-patch", "--format=%h %s", f"{name}^{{commit}}", wrong=name)
                commit, _, subject = described.partition(" ")
                folder = Path(parent) / commit
                if commit not in found:
                    _git("worktree", "add", "--detach", str(folder), commit, wrong=name)
                    found[commit] = (folder, subject)
            yield found
        finally:
            for folder, _ in found.values():
                _git("worktree", "remove", "--force", str(folder), wrong=folder.name)


def milliseconds(folder: Path, command: Sequence[str]) -> float:
    """Milliseconds per iteration of the whole batch, with the package in that folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TIMED, *command], env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def text(record: dict[str, Any]) -> str:
    """A table of milliseconds per iteration, by commit and setting.

    Each cell has the median and the range of the rounds.
    """
    titles = [f"{s['preset']}, {s['side']}×{s['side']}, {s['batch']}".replace("_", " ") for s in record["settings"]]
    lines = [f"| commit | {' | '.join(titles)} |", "|" + " --- |" * (1 + len(titles))]
    for commit, subject in record["commits"].items():
        cells = []
        for setting in record["settings"]:
            rounds = setting["milliseconds"][commit]
            cells.append(f"{statistics.median(rounds):.3g} [{min(rounds):.3g}, {max(rounds):.3g}]")
        lines.append(f"| {commit}: {subject} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _git(*words: str, wrong: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git {words[0]} {wrong}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
