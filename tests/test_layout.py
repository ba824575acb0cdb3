"""Imports point one way, importing the package needs torch alone, and every docstring's example runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dipdefense"

# From the bottom up; a module may import what stands below it, and its own layer's helpers where named.
LAYERS = [
    {"arguments", "compiler", "modes", "pictures"},
    {"batches", "config", "files"},
    {"checks"},
    {"engine", "stopping"},
    {"reconstruct"},
    {"purifier", "randomization", "saliency", "classifiers", "datasets"},
    {"art", "attacks"},
    {"evaluation", "distributed"},
    {"paper"},
    {"cli"},
]
HEAVY = {
    "art": {"art", "attacks"},
    "matplotlib": {"evaluation", "paper"},
    "ray": {"distributed"},
    "triton": {"engine"},
    "foolbox": {"datasets"},
    "scipy": {"evaluation", "paper"},
    "torchvision": {"classifiers", "datasets", "evaluation"},
}


def level(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if module in layer)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "dipdefense":
                found |= {f"dipdefense.{alias.name}" for alias in node.names}
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "dipdefense" and len(parts) > 1:
            below = parts[1] == top(path) or level(parts[1]) < level(top(path))
            same_layer_helper = (top(path), parts[1]) in {("datasets", "classifiers")}
            assert below or same_layer_helper, f"{path.name} must not import {name}"
        if parts[0] in HEAVY:
            assert top(path) in HEAVY[parts[0]], f"{path.name} must not import {name}"


def test_import_needs_torch_alone() -> None:
    blocked = ["art", "torchvision", "matplotlib", "PIL", "scipy", "foolbox", "tqdm", "ray", "triton"]
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import dipdefense\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        f"print(sorted(new & set({blocked})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstring_examples(path: Path) -> None:
    name = ".".join(("dipdefense", *path.relative_to(PACKAGE).with_suffix("").parts))
    module = importlib.import_module(name.removesuffix(".__init__"))
    result = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert result.failed == 0
