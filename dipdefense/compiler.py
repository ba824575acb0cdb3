"""How compilers and exporters treat the defences.

A defence's output is the result of an optimisation, or a random sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_REASON = "it fits networks in a loop of its own, which is not to be compiled; to export, export the classifier alone"


def opaque(function: Callable[P, T]) -> Callable[P, T]:
    """The function, called as it is from compiled code.

    ``torch.compile`` looks neither into it nor below it: compiling it would unroll a loop of hundreds of iterations.
    """
    hidden: list[Callable[P, T]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        # Not at import: this imports the compiler, which takes as long as importing torch. An optimiser's first update
        # imports it anyway.
        if not hidden:
            hidden.append(torch.compiler.disable(function, reason=_REASON))  # type: ignore[no-untyped-call]
        return hidden[0](*args, **kwargs)

    return call


def refuse_export(module: str) -> None:
    """Refuse to be traced or exported.

    A trace would store one call's result and return it for every image.

    Raises:
        RuntimeError: the call is being traced by ``torch.jit`` or ``torch.export``, also for an export to ONNX.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or torch.compiler.is_exporting():
        raise RuntimeError(
            f"{module} cannot be traced or exported: its output is not a fixed function of the image. Export the "
            f"classifier alone, and call {module} in front of it"
        )
