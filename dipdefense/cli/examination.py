"""The findings of ``dipdefense doctor``, as data and as text."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any, get_args

from dipdefense import __version__
from dipdefense.checks import Precision, check_backend, explain
from dipdefense.cli.costs import measure
from dipdefense.cli.ending import BEGIN
from dipdefense.cli.jobs import room
from dipdefense.cli.network import Network
from dipdefense.cli.proof import prove
from dipdefense.config import Backend
from dipdefense.machine import hardware

_PACKAGES = ("torch", "torchvision", "adversarial-robustness-toolbox", "numpy", "pillow", "click", "triton", "ray")
_BACKENDS = [backend for backend in get_args(Backend) if backend != "auto"]


def examine(network: Network, *, size: int, iters: int, seconds: float, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that ``doctor`` finds, in JSON's types.

    Args:
        network: the networks that the options ask for.
        size: height and width in pixels of the images whose cost is measured.
        iters: number of iterations to predict the cost of.
        seconds: to measure for.
        asked: the options "precision" and "backend" as given.

    Raises:
        ValueError: the images are too small for the networks, or too large for the free memory.
    """
    network.config.scales_for(size, size)
    several = room(network.purifier(1), (3, size, size), network.device, option="--size")
    begun = time.monotonic() - BEGIN
    reasons = explain(network.device, precision=asked["precision"], backend=asked["backend"])
    precisions: tuple[Precision, ...] = ("fp32",) if network.precision == "fp32" else ("fp32", "bf16")
    proofs = [prove(network.device, precision) for precision in precisions]
    alone = measure(network, side=size, iters=iters, images=1, budget=seconds)
    costs = [alone]
    if several > 1:
        costs.append(measure(network, side=size, iters=iters, images=several, budget=seconds))
    return {
        "versions": {"dipdefense": __version__, "python": platform.python_version()} | _versions(),
        "hardware": hardware(network.device),
        "device": str(network.device),
        "precision": reasons["precision"],
        "backend": reasons["backend"],
        "backends": {backend: _obstacle(backend, network) or "runs here" for backend in _BACKENDS},
        "config": network.name,
        "reduced": network.reduced or None,
        "proofs": [asdict(proof) | {"passed": proof.passed, "told": str(proof)} for proof in proofs],
        "size": size,
        "iterations": iters,
        "seconds_to_begin": round(begun, 2),
        "costs": [asdict(cost) for cost in costs],
    }


def told(found: Mapping[str, Any]) -> str:
    """The findings as text."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"versions    {versions}",
        f"device      {found['device']}: {found['hardware']}",
        f"precision   {found['precision']}",
        f"backend     {found['backend']}",
        *(f"            {name}: {state}" for name, state in found["backends"].items()),
        *(f"proof       {proof['told']}." for proof in found["proofs"]),
        f"cost        {found['size']}×{found['size']} pixels, {found['iterations']} iterations, {found['config']}:",
        *(f"            {_cost(cost)}" for cost in found["costs"]),
        f"            {found['seconds_to_begin']:.0f} s more for a command to start",
    ]
    return "\n".join([*lines, *([found["reduced"]] if found["reduced"] else [])])


def _cost(cost: Mapping[str, Any]) -> str:
    peak = "" if cost["memory"] is None else f", {cost['memory'] / 1e6:.0f} MB measured"
    together = "one image by itself" if cost["images"] == 1 else f"{cost['images']} at once"
    return (
        f"{together}: {cost['seconds']:.3g} s an image (from {cost['measured']} iterations){peak}, "
        f"{cost['images'] * cost['expected'] / 1e6:.0f} MB planned of {cost['free'] / 1e6:.0f} MB free"
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _obstacle(backend: Backend, network: Network) -> str:
    try:
        check_backend(backend, network.device, network.config)
    except ValueError as error:
        return str(error)
    return ""
