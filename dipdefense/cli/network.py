"""The networks that a command line asks for, and what decides their outputs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dipdefense import arguments
from dipdefense.checks import Precision, check_backend, operand_dtype
from dipdefense.config import CONFIGS, Backend, DIPConfig
from dipdefense.purifier import DIPPurifier
from dipdefense.seeds import derive_seed
from dipdefense.stopping import RuleName


@dataclass(frozen=True)
class Network:
    """The networks of a run and where they are fitted.

    Attributes:
        name: of the configuration.
        config: its numbers.
        device: where.
        precision: "fp32" or "bf16", decided.
        backend: as asked for; "torch" where there is no other.
        seed: of the run.
    """

    name: str
    config: DIPConfig
    device: torch.device
    precision: Precision
    backend: Backend
    seed: int

    @property
    def reduced(self) -> str:
        """What is smaller than in the paper, in a sentence; empty for the paper's networks."""
        if self.name != "compact":
            return ""
        return (
            f"REDUCED SETTING: networks of {self.config.channels} channels, not the paper's 128; give --config paper "
            "for those."
        )

    def seed_of(self, name: str) -> int:
        """An image's own seed; the experiments give an image of this name the same."""
        return derive_seed(self.seed, "dip", name)

    def decisive(self) -> dict[str, Any]:
        """What decides outputs beside the image, its seed and the iterations, in types that JSON has."""
        return {
            "config": dataclasses.asdict(self.config),
            "device": self.device.type,
            "precision": self.precision,
            "backend": self.backend,
        }

    def purifier(
        self, iters: int, *, batch_size: int | Literal["auto"] = "auto", stopping: RuleName | None = None
    ) -> DIPPurifier:
        """The defence with these networks."""
        return DIPPurifier(
            iters, config=self.config, batch_size=batch_size, precision=self.precision, backend=self.backend,
            stopping=stopping,
        )  # fmt: skip


def device_named(name: str | None) -> torch.device:
    """The device of the option ``--device``; without it, a GPU where there is one.

    Raises:
        ValueError: the name is no device of this machine.
    """
    try:
        return arguments.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except ValueError as error:
        raise ValueError(f"--device: {error}") from error


def asked_for(*, config: str | None, device: str | None, precision: Precision, backend: Backend, seed: int) -> Network:
    """The networks of these options, with what was left out decided by the device.

    Raises:
        ValueError: the device, the precision or the backend is not to be had here.
    """
    where = device_named(device)
    name = config or ("paper" if where.type == "cuda" else "compact")
    check_backend(backend, where, CONFIGS[name]())
    operands = operand_dtype(precision, where)
    return Network(
        name,
        CONFIGS[name](),
        where,
        "bf16" if operands == torch.bfloat16 else "fp32",
        "torch" if backend == "auto" and where.type == "cpu" else backend,
        seed,
    )
