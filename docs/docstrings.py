"""A Griffe extension for the docstrings' "Example" sections and Sphinx roles.

Griffe calls the section "Examples" and does not know Sphinx's roles.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|mod|meth|attr):`~?([\w.]+)`")


class Readable(griffe.Extension):
    """Renames the section "Example" and strips the roles when a docstring is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value.replace("Example:\n", "Examples:\n"))
