"""The networks of a command line, and the settings that decide their outputs."""

from __future__ import annotations

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
    """The networks of a run, and how they are fitted.

    Attributes:
        name: the configuration's name.
        config: the configuration.
        device: the device that fits them.
        precision: "fp32" or "bf16"; "auto" is resolved.
        backend: as given; on a CPU "auto" is resolved to "torch".
        seed: the run's.
    """

    name: str
    config: DIPConfig
    device: torch.device
    precision: Precision
    backend: Backend
    seed: int

    @property
    def reduced(self) -> str:
        """A sentence on the reduction of the smaller networks; empty for the others."""
        if self.name not in ("compact", "half-size"):
            return ""
        size = " at half of the images' size" if self.config.reduction > 1 else ""
        return (
            f"REDUCED SETTING: networks of {self.config.channels} channels{size} instead of the paper's 128, which "
            "--config paper selects."
        )

    def seed_of(self, name: str) -> int:
        """The seed of the image with this name; the experiments derive the same one."""
        return derive_seed(self.seed, "dip", name)

    def decisive(self) -> dict[str, Any]:
        """The settings that decide outputs, in JSON's types.

        The image, its seed and the iterations decide them too, and are not included.
        """
        return {
            "config": self.config.to_json(),
            "device": self.device.type,
            "precision": self.precision,
            "backend": self.backend,
        }

    def purifier(
        self, iters: int, *, batch_size: int | Literal["auto"] = "auto", stopping: RuleName | None = None
    ) -> DIPPurifier:
        """The defence that fits these networks."""
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
    """The networks of these options; the device decides what they leave open.

    Raises:
        ValueError: the device, the precision or the backend is not available here.
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
