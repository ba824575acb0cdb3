"""Benchmark modules import each other in one direction only, in functions too."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT


def imports(folder: Path) -> dict[str, set[str]]:
    """Imports among the modules below ``folder``, in functions too, by dotted name."""
    files = {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
        for path in folder.rglob("*.py")
    }
    found = {}
    for module, path in files.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[module] = named & files.keys()
    return found


def test_no_circle() -> None:
    graph = imports(ROOT / "benchmarks")
    assert graph["speed.benchmark"] >= {"speed.contenders", "speed.timing"}
    TopologicalSorter(graph).prepare()


def test_a_circle_through_a_function_is_one(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "__init__.py").touch()
    (tmp_path / "first.py").write_text("from inner import second\n")
    (tmp_path / "inner" / "second.py").write_text("def later():\n    import first\n")
    with pytest.raises(CycleError):
        TopologicalSorter(imports(tmp_path)).prepare()
