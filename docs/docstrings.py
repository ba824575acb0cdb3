"""The docstrings as Griffe reads them: its section is "Examples", and roles of Sphinx are nothing to it."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|mod|meth|attr):`~?([\w.]+)`")


class Readable(griffe.Extension):
    """Renames the section and strips the roles as a docstring is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of modules, classes, functions and attributes."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value.replace("Example:\n", "Examples:\n"))
