"""A module of this package in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BENCHMARKS = str(Path(__file__).parents[1])


def start_module(name: str, task: Mapping[str, Any]) -> subprocess.Popen[str]:
    """Start ``python -m name`` with the task, in JSON, as its only argument.

    Its stdout and stderr are piped.
    """
    path = os.pathsep.join(filter(None, [_BENCHMARKS, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", name, json.dumps(task)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
