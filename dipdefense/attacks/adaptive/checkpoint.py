"""The state of an attack in a file, from which a killed attack resumes.

A kill costs about a minute of work and changes no result.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dipdefense.files import write_atomically


class OtherAttackError(ValueError):
    """A checkpoint that another attack wrote."""


@dataclass(frozen=True)
class Checkpoint:
    """Where an attack keeps its state, and how often.

    An attack that finds its own state resumes from it, with the result of a run that was never interrupted. The file
    stays when the attack has ended, and holds its result; `remove` it once that is kept elsewhere.

    Attributes:
        path: the file; its folder must exist. One seed an image makes a file an image beside it.
        seconds: the least time between two writes.

    Raises:
        OtherAttackError: at the attack, the file is another attack's.
        ValueError: at the attack, the file is not a checkpoint.
    """

    path: Path | str
    seconds: float = 60.0

    def remove(self) -> None:
        """Delete the file and those of single images, where they exist."""
        path = Path(self.path)
        for file in (path, *path.parent.glob(f"{path.name}.image*")):
            file.unlink(missing_ok=True)

    def of_image(self, index: int) -> Checkpoint:
        """The checkpoint of one image of the batch."""
        return Checkpoint(f"{self.path}.image{index}", self.seconds)


@dataclass
class Progress:
    """One attack's access to its checkpoint; without one nothing is kept.

    Attributes:
        checkpoint: the file, or none.
        identity: the digest of attack, images, labels, threat, seed and the classifier's weights.
        defence: the fingerprint of the defence. Files of earlier versions have none, and are taken for this defence's.
        device: of the state.
    """

    checkpoint: Checkpoint | None
    identity: str
    defence: str = ""
    device: torch.device | str = "cpu"
    _written: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any]:
        """The state that was saved last; an empty one if there is none.

        Raises:
            OtherAttackError: the file is another attack's.
            ValueError: the file is not a checkpoint.
        """
        if self.checkpoint is None or not Path(self.checkpoint.path).exists():
            return {}
        path = self.checkpoint.path
        try:
            saved = torch.load(path, weights_only=True, map_location=self.device)
            known = saved["identity"], saved.get("defence", self.defence)
            state = dict(saved["state"])
        except Exception as error:  # broken bytes raise many kinds
            raise ValueError(
                f"{path} is not a checkpoint of an attack ({error}); remove it or name another file"
            ) from None
        if known != (self.identity, self.defence):
            raise OtherAttackError(
                f"{path} is the checkpoint of another attack: the attack, defence, images, labels, threat or seed "
                "differs; remove it or name another file"
            )
        return state

    def save(self, state: Mapping[str, Any], *, at_once: bool = False) -> None:
        """Write the state if it is required at once or the last write is not recent."""
        if self.checkpoint is None or not (at_once or time.monotonic() - self._written >= self.checkpoint.seconds):
            return
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "defence": self.defence, "state": dict(state)}, buffer)
        write_atomically(self.checkpoint.path, buffer.getvalue())
        self._written = time.monotonic()


def fingerprint(*modules: nn.Module) -> str:
    """A digest of how modules print, their weights and their public attributes.

    Of the attributes, their parts' included, those count that are numbers, strings, tuples or lists of them, tensors,
    and ``config``; but none that a class names as ``immaterial``.
    """
    weights = (part for module in modules for named in module.state_dict().items() for part in named)
    attributes = (
        part
        for module in modules
        for owner in module.modules()
        for name, value in sorted(vars(owner).items())
        if not name.startswith("_") and name not in ("training", *getattr(owner, "immaterial", ()))
        if name == "config" or _plain(value)
        for part in (type(owner).__qualname__, name, value)
    )
    return identity(*modules, *weights, *attributes)


def _plain(value: object) -> bool:
    """Whether a value prints as what it is, or is a tensor."""
    if isinstance(value, tuple | list):
        return all(_plain(each) and not isinstance(each, Tensor) for each in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | Tensor)


def identity(*parts: object) -> str:
    """A digest of objects by how they print, and of tensors by their values."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.detach().cpu().flatten() if isinstance(part, Tensor) else None
        digest.update(repr(part).encode() if data is None else data.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
