"""The device of this machine, and whether each backend is correct on it.

    python benchmarks/device.py environment
    python benchmarks/device.py triton          # or torch, cudagraphs
    python benchmarks/device.py auto

A backend must pass two comparisons: its networks have the outputs and gradients of plain networks in float64
(``speed.check``), and its iterations agree with those of torch's operators (``dipdefense.engine.trial``, behind
``backend="auto"``). ``auto`` tries all backends at once and runs a short reconstruction with ``backend="auto"``.

A fault on a GPU ends all work of its process, hence one process for each question. After each comparison it prints its
findings so far as one line of JSON, which survive a crash. It exits with 1 if a comparison failed. It has been run only
on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from speed.check import Contender, check
from speed.contenders import GRAPHS, KERNELS, NATIVE, contenders

from dipdefense.checks import Request, check_backend, check_request
from dipdefense.config import Backend, DIPConfig
from dipdefense.engine.backends import SHORTEST, TRIED, available, tried
from dipdefense.engine.fitting import surroundings
from dipdefense.reconstruct import reconstruct

BACKENDS: tuple[Backend, ...] = ("torch", *TRIED)
QUESTIONS = ("environment", *BACKENDS, "auto")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("question", choices=QUESTIONS)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    add("--channels", type=int, help="width of one small network instead of the paper's, to try this script")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Answer the question, printing the findings so far after each part.

    Raises:
        SystemExit: code 1: a comparison failed.
    """
    given = parse_arguments(arguments)
    device = torch.device(given.device)
    answer: dict[str, Any] = {}
    parts = environment(device) if given.question == "environment" else proof(given.question, device, given.channels)
    for part in parts:
        answer |= part
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    if answer.get("failed"):
        raise SystemExit(1)
    return answer


def environment(device: torch.device) -> Iterator[Mapping[str, Any]]:
    """Hardware, versions, and the output of ``nvidia-smi``."""
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    packages = {name: _version(name) for name in ("triton", "pytest", "matplotlib", "foolbox")}
    yield {"optional packages": packages, "torch is built with": {"CUDA": torch.version.cuda, "cuDNN": cudnn}}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        yield {
            "capability": [found.major, found.minor],
            "memory": found.total_memory,
            "multiprocessors": found.multi_processor_count,
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    if (path := shutil.which("nvidia-smi")) is not None:
        done = subprocess.run([path], capture_output=True, text=True, timeout=30)
        yield {"nvidia-smi": (done.stdout + done.stderr).splitlines()}
    # It imports ART, which takes seconds; no other question needs it.
    from dipdefense.evaluation import circumstances

    yield circumstances(device)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def proof(question: str, device: torch.device, channels: int | None) -> Iterator[Mapping[str, Any]]:
    """The result of each comparison; ``failed`` has the reasons of those that failed."""
    asked = requests(device, channels)
    if question == "auto":
        yield from chosen_by_itself(asked)
        return
    (backend,) = (name for name in BACKENDS if name == question)
    try:
        check_backend(backend, device)
    except ValueError as error:
        yield {"unavailable": str(error)}
        return
    failed: dict[str, str] = {}
    float64: dict[str, Any] = {}
    for name, request in asked.items():
        for contender in of_backend(backend, device):
            found = f"{contender.name}, {name}, against float64"
            scales = request.config.scales_for(*request.images.shape[2:])
            try:
                float64[found] = check(contender, request.config, scales=scales, device=device, seed=0)._asdict()
            except Exception as error:  # whatever a driver, a compiler or an allocator raises
                failed[found] = f"{type(error).__name__}: {error}"
            yield {"float64": float64, "failed": failed}
    trials: dict[str, Any] = {}
    for name, request in asked.items():
        with surroundings(device):
            trial = tried(request, () if backend == "torch" else (backend,))
        trials[name] = trial._asdict()
        failed |= {f"{name}, against torch's operators": reason for reason in trial.refused.values()}
        yield {"trials": trials, "failed": failed}


def chosen_by_itself(asked: Mapping[str, Request]) -> Iterator[Mapping[str, Any]]:
    """By request, the trial of every backend and the backend that ``auto`` chose."""
    trials: dict[str, Any] = {}
    for name, request in asked.items():
        device = request.images.device
        with surroundings(device):
            trials[name] = tried(request, available(device, request.config))._asdict()
        yield {"trials": trials}
        run = reconstruct(request.images, budgets=(SHORTEST,), config=request.config, seed=0, backend="auto")
        trials[name] |= {"taken": run.backend, "status": sorted(set(run.status)), "loss": run.losses[-1].mean().item()}
        yield {"trials": trials}


def requests(device: torch.device, channels: int | None) -> dict[str, Request]:
    """A batch of large and one of small images, with the paper's networks for them.

    If ``channels`` is given, there is one batch of two small images instead, with a network of that width.
    """
    wanted = {
        "paper, 8 × 224×224": (DIPConfig.paper(), 8, 224),
        "architecture 1, 64 × 32×32": (DIPConfig.architecture_1(), 64, 32),
    }
    if channels is not None:
        small = DIPConfig(scales=2, channels=channels, skip_channels=2, input_channels=3)
        wanted = {f"{channels} channels, 2 × 32×32": (small, 2, 32)}
    found = {}
    for name, (config, count, side) in wanted.items():
        images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
        found[name] = check_request(
            images, budgets=(1000,), config=config, seed=list(range(count)), precision="auto", backend="torch"
        )
    return found


def of_backend(backend: Backend, device: torch.device) -> list[Contender]:
    """The speed benchmark's contenders of a backend, in each precision of the device."""
    everyone = contenders(device, expendable=True)
    native = [name for name in everyone if name.startswith(NATIVE)]
    own = {"cudagraphs": [GRAPHS], "triton": [KERNELS], "native": native}
    plain = [name for name in everyone if name in ("dipdefense, fp32", "dipdefense, bf16")]
    return [dataclasses.replace(everyone[name], expendable=False) for name in own.get(backend, plain)]


if __name__ == "__main__":
    main()
