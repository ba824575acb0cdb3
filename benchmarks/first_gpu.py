"""All checks and measurements on a first GPU, in one command and nine minutes.

    python benchmarks/first_gpu.py
    python benchmarks/first_gpu.py --data IMAGENET/val
    python benchmarks/first_gpu.py --rehearse          # all of it on a CPU, with tiny stand-ins

The parts are: the device and the versions; each backend against float64 and torch's operators (``device.py``), which
compiles Triton's kernels for the later parts; the tests that need a GPU; the choice of ``backend="auto"``; ``speed
--full``; and Table 2, clean and under two attacks, on as many images as fit into the remaining time.

Each part is a process of its own, because a fault on a GPU can end all work of its process. It has a share of the time,
and unused time goes to later parts. A part that fails or takes too long stops no other. The folder gets each part's
output (``tests.log``) while it runs, and its record (``tests.json``) when it has ended. The same command resumes: parts
that passed at the same commit are skipped, and Table 2 has its store.

Exits with 1 if a part failed or took too long. The script has not yet been run on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from speed.trials import TOO_LONG

from dipdefense.evaluation import circumstances
from dipdefense.files import write_atomically

ROOT = Path(__file__).parents[1]
Status = Literal["passed", "failed", "took too long", "unavailable"]

GRACE = 10.0
"""Seconds between a part's interrupt and its end by force."""

_TAIL = 6000
# The batch of Table 2 and the images that each call adds; a batch that grew would be computed again.
_STEP = 5


@dataclass(frozen=True)
class Plan:
    """A run's folder, its device, the data of Table 2, and whether it is a rehearsal."""

    folder: Path
    device: str
    data: Path | None = None
    rehearse: bool = False


@dataclass
class Attempt:
    """The commands of one part, which write their output to the part's log.

    Attributes:
        log: the log file.
        deadline: in seconds of ``time.monotonic``.
        commands: the commands that were run.
    """

    log: Path
    deadline: float
    commands: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds to the deadline, never negative."""
        return max(0.0, self.deadline - time.monotonic())

    def run(self, *words: str | Path) -> Status:
        """Run a Python command.

        At the deadline it is interrupted, and killed if it continues.
        """
        shown = [word.name if isinstance(word, Path) else word for word in words]
        self.commands.append(shlex.join(["python", *shown]))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self.log.open("a") as output:
            print(f"$ {self.commands[-1]}", file=output, flush=True)
            process = subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                # Behind nohup interrupts are ignored, and a child would inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        try:
            return "passed" if process.wait(self.left) == 0 else "failed"
        except subprocess.TimeoutExpired:
            # pytest writes its counts after an interrupt.
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return "took too long"
        finally:
            # With everything that it started, also when this process is interrupted.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # A process that waits for a broken driver cannot be killed; the other parts still run.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)

    def printed(self) -> str:
        """The log, without the path of this checkout."""
        return self.log.read_text(errors="replace").replace(f"{ROOT}/", "")


class Part(NamedTuple):
    """A part's share of the time, and its work.

    The work returns a status and a result in JSON's types.
    """

    share: float
    work: Callable[[Plan, Attempt], tuple[Status, Any]]


def device(question: str, plan: Plan, attempt: Attempt) -> tuple[Status, Any]:
    """The last answer that ``device.py`` printed."""
    tiny = ["--channels", "4"] if plan.rehearse else []
    status = attempt.run("benchmarks/device.py", question, "--device", plan.device, *tiny)
    answer = {}
    for line in attempt.printed().splitlines():
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
    return ("unavailable" if "unavailable" in answer and status == "passed" else status), answer


def tests(plan: Plan, attempt: Attempt) -> tuple[Status, Any]:
    """The counts of the tests, and those that did not pass."""
    report = plan.folder / "tests.xml"
    report.unlink(missing_ok=True)
    # The rest of the tree would be collected in vain.
    marked = [f"{path.relative_to(ROOT)}" for path in sorted((ROOT / "tests").rglob("test_*.py")) if _for_gpus(path)]
    chosen = ["not gpu and not slow", "tests/engine/test_backends.py"] if plan.rehearse else ["gpu", *marked]
    command = ["-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", *chosen, "--junit-xml"]
    status = attempt.run(*command, report)
    try:
        cases = list(ET.parse(report).iter("testcase"))
    except (OSError, ET.ParseError):
        return status, None
    unhappy = {
        f"{case.get('classname')}.{case.get('name')}": {"outcome": found.tag, "message": found.get("message", "")[:500]}
        for case in cases
        for found in case
        if found.tag in ("failure", "error", "skipped")
    }
    outcomes = [found["outcome"] for found in unhappy.values()]
    counts = {name: outcomes.count(name) for name in ("failure", "error", "skipped")}
    return status, {"tests": len(cases), "passed": len(cases) - len(unhappy), **counts, "others": unhappy}


def _for_gpus(path: Path) -> bool:
    """Whether a file has tests that need a GPU."""
    return re.search(r"\bmark\.gpu\b|\bruns_kernels\b", path.read_text()) is not None


def speed(plan: Plan, attempt: Attempt) -> tuple[Status, Any]:
    """The speed benchmark's record, and the settings that it has."""
    earlier = set(plan.folder.glob("speed-*.json"))
    # The ceilings, the checks and the quality part take the rest of the time.
    seconds = {"--budget-seconds": 0.4 * attempt.left, "--trial-seconds": 0.25 * attempt.left}
    sizes = ["--full"]
    if plan.rehearse:
        seconds = dict.fromkeys(seconds, 0.5)
        sizes = ["--sides", "32", "--channels", "4", "--batch-sizes", "1", "--rounds", "1", "--no-quality"]
    timing = [word for name, value in seconds.items() for word in (name, f"{value:.3g}")]
    status = attempt.run("benchmarks/speed", *sizes, *timing, "--device", plan.device, "--out", plan.folder)
    written = sorted(set(plan.folder.glob("speed-*.json")) - earlier)
    if not written:
        return status, None
    record = json.loads(written[-1].read_text())
    settings = [setting["name"] for setting in record["settings"]]
    checks = [check for setting in record["settings"] for check in setting["checks"].values()]
    # Nothing is known of these contenders, and the next call may have the time.
    if status == "passed" and any(check.get("failed") == TOO_LONG for check in checks):
        status = "took too long"
    return status, {"record": written[-1].name, "settings": settings, "quality": "quality" in record}


def table2(plan: Plan, attempt: Attempt) -> tuple[Status, Any]:
    """The accuracies on as many images as there was time for.

    The part passes if the first call does. How a later call failed or exceeded the time is in ``last call``.
    """
    sizes: Iterable[int] = itertools.count(_STEP, _STEP)
    options: list[str | Path] = ["--batch", f"{_STEP}", "--conditions", "clean", "fgsm-5", "bi-10"]
    if plan.rehearse:
        sizes = (1, 2)
        options = ["--batch", "1", "--conditions", "clean", "--defences", "none", "dip", "--budgets", "1", "2"]
    if plan.data is not None:
        options += ["--data", plan.data.resolve()]
    options += ["--device", plan.device, "--out", plan.folder / "table2"]
    images, last = 0, None
    for size in sizes:
        status = attempt.run("benchmarks/table2.py", "--images", f"{size}", *options)
        if status != "passed":
            last = f"{size} images: {status}"
            break
        images = size
    if not images:
        return status, None
    with (plan.folder / "table2" / "table2.csv").open(newline="") as file:
        return "passed", {"images": images, "last call": last, "accuracies": list(csv.DictReader(file))}


PARTS = {
    # A first import from a cold disk may take most of a minute.
    "environment": Part(0.1, partial(device, "environment")),
    "backend-torch": Part(0.06, partial(device, "torch")),
    "backend-cudagraphs": Part(0.06, partial(device, "cudagraphs")),
    # With the compilation of its kernels, which the later parts then find in Triton's cache.
    "backend-triton": Part(0.18, partial(device, "triton")),
    "tests": Part(0.16, tests),
    "backend-auto": Part(0.06, partial(device, "auto")),
    "speed": Part(0.26, speed),
    "table2": Part(0.12, table2),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--minutes", type=float, default=9.0, help="time for all parts (default: %(default)g)")
    add("--data", type=Path, help="images of Table 2, a folder such as IMAGENET/val (default: packaged images)")
    add("--rehearse", action="store_true", help="run on a CPU, with tiny networks and a few fast tests")
    add(
        "--out",
        type=Path,
        help="default: benchmarks/results/first-gpu-DATE, or out/first-gpu-rehearsal with --rehearse",
    )
    given = parser.parse_args(arguments)
    if not 0 < given.minutes < float("inf"):
        parser.error(f"--minutes must be a positive number, got {given.minutes:g}")
    if given.data is not None and not given.data.exists():
        parser.error(f"--data {given.data} does not exist")
    if not given.rehearse and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --rehearse runs all parts on a CPU, with tiny stand-ins")
    today = ROOT / "benchmarks" / "results" / f"first-gpu-{datetime.now(UTC).date()}"
    given.out = given.out or (ROOT / "out" / "first-gpu-rehearsal" if given.rehearse else today)
    return given


def main(arguments: Sequence[str] | None = None) -> dict[str, Status]:
    """Run every part that has not passed yet, and return the status of each."""
    given = parse_arguments(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(given.out.resolve(), "cpu" if given.rehearse else "cuda", given.data, given.rehearse)
    started, share = time.monotonic(), 0.0
    identity = {
        "commit": circumstances(torch.device("cpu"))["commit"],
        "rehearsal": plan.rehearse,
        "data": plan.data.name if plan.data else None,
    }
    statuses: dict[str, Status] = {}
    for name, part in PARTS.items():
        share += part.share
        record = plan.folder / f"{name}.json"
        if passed_before(record, identity):
            statuses[name] = "passed"
            print(f"{name}: passed before", flush=True)
            continue
        print(f"{name} …", flush=True)
        found = attempted(name, part, plan, deadline=started + 60 * given.minutes * share)
        write_atomically(record, json.dumps(identity | found, indent=1, ensure_ascii=False) + "\n")
        statuses[name] = found["status"]
        print(f"{name}: {found['status']}, {found['seconds']:.0f} s", flush=True)
    print(f"written: {plan.folder}")
    return statuses


def attempted(name: str, part: Part, plan: Plan, *, deadline: float) -> dict[str, Any]:
    """Run a part, and return its record."""
    begun, when = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    log = plan.folder / f"{name}.log"
    log.unlink(missing_ok=True)
    attempt = Attempt(log, deadline)
    limit = attempt.left
    status: Status
    try:
        status, result = part.work(plan, attempt)
    except Exception as error:  # such as a file that a part left unwritten or truncated
        status, result = "failed", {"error": f"{type(error).__name__}: {error}"}
    return {
        "part": name,
        "status": status,
        "started": when,
        "seconds": round(time.monotonic() - begun, 1),
        "limit": round(limit, 1),
        "commands": attempt.commands,
        "result": result,
        "output": attempt.printed()[-_TAIL:].splitlines() if log.exists() else [],
    }


def passed_before(path: Path, identity: dict[str, Any]) -> bool:
    """Whether the part passed at this commit with these settings.

    It is false for a checkout with uncommitted changes.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    same = all(record.get(name) == value for name, value in identity.items())
    return same and record["status"] == "passed" and not identity["commit"].endswith("-dirty")


if __name__ == "__main__":
    # A rented machine may end with SIGTERM; the running part must not outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        good = set(main().values()) <= {"passed", "unavailable"}
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes")
    sys.exit(0 if good else 1)
