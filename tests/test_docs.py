"""The documentation's code and notebook run; its table of tests is complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"
SHORTER = {
    "iters=1000": "iters=3", "iters=500": "iters=3", "(500, 750, 1000)": "(1, 2, 3)", "range(50, 1001, 50)": "(1, 2)",
    "(250, 500, 750)": "(1, 2, 3)", "DIPPurifier(50,": "DIPPurifier(2,",
}  # fmt: skip


def shortened(code: str) -> str:
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    return code


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("name", [page.name for page in sorted(PAGES.glob("*.md")) if snippets(page)])
def test_the_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, given what a reader has: images in [0, 1], labels, a classifier."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 36), "teal").save("photo.jpg")
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([3, 7])
    names: dict[str, Any] = {"images": images, "labels": labels, "classifier": classifier}
    exec("from dipdefense import *", names)
    for code in snippets(PAGES / name):
        exec(shortened(code), names)


def test_the_table_of_libraries_names_every_integration_test() -> None:
    tests = re.compile(r"^def (test_\w+)", flags=re.MULTILINE)
    files = (ROOT / "tests" / "integration").glob("test_*.py")
    written = {name for path in files for name in tests.findall(path.read_text())}
    named = re.findall(r"`(test_\w+)` \|$", (PAGES / "works-with.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(written)


def test_the_pages_name_files_that_exist() -> None:
    for page in PAGES.glob("*.md"):
        named = set(re.findall(r"\b((?:examples|benchmarks|tests|dipdefense)/[\w./-]*\w)", page.read_text()))
        assert not {name for name in named if not (ROOT / name).exists()}, page.name


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own shows pictures
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = shortened(cell.source)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "tensor(5." in outputs[-1]["data"]["text/plain"]
