"""How fast networks are fitted: every contender in one run, on one machine.

    python benchmarks/speed                # minutes; on a CPU at small batch sizes
    python benchmarks/speed --full         # the whole measurement, estimated at nine minutes on one H100

The contenders are the published loop (one image after another, eager, fp32); ``torch.func.vmap`` over stacked plain
networks; grouped convolutions without rewrites; ``dipdefense.reconstruct`` in fp32 and, where the device has it, in
bf16; and, where deepinv is installed, the loop of its ``DeepImagePrior`` around the published network. From the same
weights and noise each must first have the outputs and gradients of plain networks in float64; otherwise the run ends.
On a GPU ``--full`` adds the library's CUDA graph and Triton kernels. No GPU has run these yet, so they are tried first
in processes of their own. Failures are recorded, and such a contender is left out.

Only the steady state is timed, without warm-up iterations. Contenders take turns in rounds on fresh random images, so a
drift of the machine affects all of them. Ratios to the published loop are taken within a round. Medians are printed
with the range of the rounds. A loop that fits images one after another takes the same time for each, so it is timed on
a single image. Peak memory is torch's on a GPU; on a CPU it is the growth of the resident memory of a separate process.

The floor is the larger of two times: the fewest known operations at the rate of a large matrix product (on a CPU, of a
large convolution if that is faster), and the fewest bytes at the rate of a large copy, measured in the same run. The
quality part (by default only on a GPU) fits packaged images over the full budget with each loop, and compares loss
curves, PSNR and a classifier's decisions.

Each run writes one JSON record and a plot of the same name to benchmarks/results/. The record is rewritten after each
setting, the largest images first with ``--full``, and after each loop of the quality part, so a run that is cut off
leaves its results so far.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dipdefense.config import PAPER_BUDGETS, DIPConfig
from dipdefense.evaluation import circumstances
from dipdefense.files import write_atomically
from speed.check import Contender, check
from speed.contenders import contenders
from speed.floor import Ceilings, flops, least_bytes, measure_ceilings
from speed.memory import peak_in_fresh_process
from speed.quality import on_packaged_images
from speed.report import plot, text
from speed.timing import Cell, Setting, measure, speedups, summary
from speed.trials import outcome, start

_OPERANDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# For the ceilings: the side of the matrices, and the bytes of the copy.
_CEILINGS = {"cpu": {"side": 2048, "copied": 2**28}, "cuda": {"side": 8192, "copied": 2**30}}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the device decides the options that are left open."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--full", action="store_true", help="more sides and batch sizes, and more time for each")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    add(
        "--sides",
        type=int,
        nargs="+",
        help="of the square images: the paper's network from 64 pixels, both of appendix A.3 below",
    )
    add("--batch-sizes", type=int, nargs="+", help="of every side (default: by side and device)")
    add("--channels", type=int, help="width instead of the networks' own, to try this script")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--budget-seconds", type=float, help="for the timing (default: 600 on a CPU; 120 on a GPU, with --full 150)")
    # Enough to compile some 70 kernels in several processes at once, and to run a few iterations with each.
    add(
        "--trial-seconds", type=float, default=150.0, help="for the trials of untried contenders (default: %(default)s)"
    )
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--quality", action=argparse.BooleanOptionalAction, help="default: on a GPU only")
    add("--quality-images", type=int, default=4, help="default: %(default)s")
    add("--quality-budgets", type=int, nargs="+", default=list(PAPER_BUDGETS), help="default: %(default)s")
    add("--out", type=Path, default=Path(__file__).parents[1] / "results", help="default: benchmarks/results")
    given = parser.parse_args(arguments)
    on_gpu = torch.device(given.device).type == "cuda"
    if given.sides is None:
        given.sides = [224, 128, 64, 32] if given.full else [32, 224]
    if given.budget_seconds is None:
        given.budget_seconds = (150.0 if given.full else 120.0) if on_gpu else 600.0
    if given.quality is None:
        given.quality = on_gpu
    return given


def settings(sides: Sequence[int], channels: int | None) -> list[Setting]:
    """The paper's networks for images of each size, or one of the given width."""
    found = []
    for side in sides:
        configs = {"paper": DIPConfig.paper()}
        if side < 64:
            configs = {"architecture 1": DIPConfig.architecture_1(), "architecture 2": DIPConfig.architecture_2()}
        if channels is not None:
            scales = DIPConfig().scales_for(side, side)
            configs = {f"{channels} channels": DIPConfig(scales=scales, channels=channels)}
        found += [Setting(f"{side}×{side}, {name}", side, config) for name, config in configs.items()]
    return found


def batch_sizes(side: int, *, on_gpu: bool, full: bool) -> tuple[int, ...]:
    """The default batch sizes, up to where a contender stops gaining."""
    if not on_gpu:
        return (1, 2) if side > 64 else (1, 4, 16)
    if not full:
        return (1, 16) if side > 64 else (1, 64)
    return {32: (1, 16, 64, 256), 224: (1, 8, 32, 64)}.get(side, (1, 32))


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure, write the record and its plot, print it, and return its path."""
    given = parse_arguments(arguments)
    device = torch.device(given.device)
    on_gpu = device.type == "cuda"
    everyone = contenders(device, expendable=given.full and on_gpu)
    measured = settings(given.sides, given.channels)
    batches = {
        setting.name: sorted(given.batch_sizes or batch_sizes(setting.side, on_gpu=on_gpu, full=given.full))
        for setting in measured
    }
    tried = try_expendable(everyone, measured, batches, device=device, seed=given.seed, seconds=given.trial_seconds)
    known = circumstances(device)
    path: Path = given.out / f"speed-{device.type}-{known['started'].split('+')[0].replace(':', '')}.json"
    dtypes = {name: dtype for name, dtype in _OPERANDS.items() if dtype in {c.operands for c in everyone.values()}}
    ceilings = {name: measure_ceilings(device, dtype, **_CEILINGS[device.type]) for name, dtype in dtypes.items()}
    record: dict[str, Any] = {
        "circumstances": known,
        "arguments": {name: value for name, value in vars(given).items() if name != "out"},
        "tf32 convolutions": on_gpu and torch.backends.cudnn.allow_tf32,
        "ceilings": {name: ceiling._asdict() for name, ceiling in ceilings.items()},
        "settings": [],
        "results": [],
    }
    for setting in measured:
        print(f"{setting.name} …", flush=True)
        scales = setting.config.scales_for(setting.side, setting.side)
        checks = {
            name: tried[setting.name, name]
            if contender.expendable
            else check(contender, setting.config, scales=scales, device=device, seed=given.seed)._asdict()
            for name, contender in everyone.items()
        }
        floors = floor_seconds(setting, ceilings)
        record["settings"].append(describe(setting) | {"checks": checks, "floor_seconds": floors})
        cells = [
            Cell(contender, batch)
            for name, contender in everyone.items()
            if "failed" not in checks[name]
            for batch in (batches[setting.name] if contender.batched else (1,))
        ]
        # Large images get most of the time, but not all of it.
        seconds = given.budget_seconds * setting.side / sum(other.side for other in measured)
        measure(setting, cells, device=device, rounds=given.rounds, seconds=seconds, seed=given.seed)
        record["results"] += rows(setting, cells, floors, device)
        write(record, path)
    if given.quality:
        print("quality …", flush=True)
        (config,) = {setting.config for setting in settings([224], given.channels)}
        sound = {
            name: contender
            for name, contender in everyone.items()
            if all("failed" not in setting["checks"][name] for setting in record["settings"])
        }
        try:
            record["quality"] = on_packaged_images(
                sound, device, count=given.quality_images, config=config, budgets=given.quality_budgets,
                report=lambda found: write(record | {"quality": found}, path),
            )  # fmt: skip
        except ImportError as error:
            print(f"quality left out: {error}")
        write(record, path)
    plot(record, path.with_suffix(".png"))
    print(text(record))
    print(f"written: {path} and {path.with_suffix('.png').name}")
    return path


def try_expendable(
    everyone: Mapping[str, Contender],
    measured: Sequence[Setting],
    batches: Mapping[str, Sequence[int]],
    *,
    device: torch.device,
    seed: int,
    seconds: float,
) -> dict[tuple[str, str], dict[str, Any]]:
    """By setting and contender, the outcome of the trial of each that may fail.

    All run at once, and those that find no memory then, each alone.
    """
    tasks = {
        (setting.name, name): (contender, setting)
        for setting in measured
        for name, contender in everyone.items()
        if contender.expendable
    }

    def begun(key: tuple[str, str]) -> subprocess.Popen[str]:
        contender, setting = tasks[key]
        return start(contender, setting, batches[setting.name], device=device, seed=seed)

    deadline = time.monotonic() + seconds
    trials = {key: begun(key) for key in tasks}
    found = {key: outcome(trial, deadline=deadline) for key, trial in trials.items()}
    for key, result in found.items():
        if "out of memory" in str(result.get("failed")).lower():
            found[key] = outcome(begun(key), deadline=deadline)
    for (setting, name), result in found.items():
        print(f"tried: {name}, {setting}: {result}", flush=True)
    return found


def write(record: dict[str, Any], path: Path) -> None:
    """Write the record.

    Called after every setting, so a run that is cut off leaves its results so far.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def describe(setting: Setting) -> dict[str, Any]:
    """A setting's operations and bytes."""
    shape = {"image_channels": 3, "height": setting.side, "width": setting.side}
    scales = setting.config.scales_for(setting.side, setting.side)
    return {
        "name": setting.name,
        "side": setting.side,
        "config": dataclasses.asdict(setting.config),
        "parameters": setting.config.parameter_count(image_channels=3, scales=scales),
        "flops": {
            "published": flops(setting.config, **shape, rewritten=False),
            "rewritten": flops(setting.config, **shape, rewritten=True),
        },
        "bytes": {
            name: least_bytes(setting.config, **shape, operand_bytes=dtype.itemsize)
            for name, dtype in _OPERANDS.items()
        },
    }


def floor_seconds(setting: Setting, ceilings: dict[str, Ceilings]) -> dict[str, float]:
    """The floor in seconds for an image and 1,000 iterations, by the operands' dtype."""
    numbers = describe(setting)
    return {
        name: 1000 * ceiling.least_seconds(numbers["flops"]["rewritten"], numbers["bytes"][name])
        for name, ceiling in ceilings.items()
    }


def rows(
    setting: Setting, cells: Sequence[Cell], floors: dict[str, float], device: torch.device
) -> list[dict[str, Any]]:
    """The record of each cell."""
    found = []
    names = {dtype: name for name, dtype in _OPERANDS.items()}
    for cell, speedup in zip(cells, speedups(cells), strict=True):
        contender = cell.contender
        precision = names[contender.operands]
        row: dict[str, Any] = {
            "setting": setting.name,
            "side": setting.side,
            "contender": contender.name,
            "batched": contender.batched,
            "batch": cell.batch,
            "precision": precision,
        }
        if cell.skipped is not None:
            found.append(row | {"skipped": cell.skipped})
            continue
        if device.type == "cuda":
            memory: float | None = cell.memory / 2**20
        else:
            memory = peak_in_fresh_process(contender.name, setting.config, batch=cell.batch, side=setting.side)
        seconds = summary(cell.seconds)
        measured = {
            "iterations": cell.iterations,
            "seconds": seconds,
            "speedup": summary(speedup),
            "peak_memory_mib": memory,
            "share_of_floor": floors[precision] / seconds["median"],
        }
        found.append(row | measured)
    return found
