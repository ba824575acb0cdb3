"""Griffe knows a section "Examples", and shows the code in it as code; the docstrings have one "Example" each."""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section as a docstring is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of modules, classes, functions and attributes."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
