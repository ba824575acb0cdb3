"""Compiling at run time: the cache, its faults, and a missing compiler."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from dipdefense import reconstruct
from dipdefense.checks import explain
from dipdefense.native import build, loading, proof
from dipdefense.native.library import Kernels
from dipdefense.processor import features

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(native: Kernels, kernels_cache: Path, tmp_path: Path, monkeypatch) -> Path:
    """An empty cache, no kernels loaded, and a compiler that copies the real kernels."""
    (made,) = (kernels_cache / "dipdefense").glob("kernels-*.so")
    compiler(tmp_path, monkeypatch, f'for out; do :; done\necho run >> "{tmp_path}/runs"\ncp "{made}" "$out"')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "_loaded", [])
    return tmp_path / "cache" / "dipdefense"


def compiler(folder: Path, monkeypatch, script: str) -> None:
    """A compiler that does this; its last argument is where the library is wanted."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


def test_it_compiles_once(cache: Path, tmp_path: Path, monkeypatch) -> None:
    for _ in range(2):
        monkeypatch.setattr(loading, "_loaded", [])
        assert loading.loaded().kernels is not None
    assert runs(tmp_path) == 1
    (kept,) = cache.iterdir()
    assert kept.suffix == ".so"
    # A new key: what another compiler made is not taken.
    compiler(tmp_path, monkeypatch, (tmp_path / "compiler").read_text() + "# another version")
    monkeypatch.setattr(loading, "_loaded", [])
    assert loading.loaded().kernels is not None
    assert runs(tmp_path) == 2


def test_a_compiler_that_goes_by_its_name_is_called_by_it(cache: Path, tmp_path: Path, monkeypatch) -> None:
    """As ccache does, whose links have the compilers' names."""
    script = (tmp_path / "compiler").read_text().removeprefix("#!/bin/sh\n")
    compiler(tmp_path, monkeypatch, f'[ "${{0##*/}}" = g++ ] || exit 1\n{script}')
    (tmp_path / "g++").symlink_to(tmp_path / "compiler")
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    assert loading.loaded().reason == "the kernels compiled on this machine do what torch's operators do"


def test_a_compiler_may_have_another_in_front_and_options(cache: Path, tmp_path: Path, monkeypatch) -> None:
    front = tmp_path / "front"
    front.write_text('#!/bin/sh\n[ "$2" = -m64 ] || exit 1\nexec "$@"\n')
    front.chmod(0o755)
    monkeypatch.setenv("CXX", f"{front} {tmp_path / 'compiler'} -m64")
    assert loading.loaded().kernels is not None
    # The second program's version is in the key too.
    key = build._key(build._compiler())
    with (tmp_path / "compiler").open("a") as script:
        script.write("# another version")
    assert build._key(build._compiler()) != key


def test_a_compiler_in_a_folder_with_a_space(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "of mine"
    folder.mkdir()
    compiler(folder, monkeypatch, "exit 0")
    assert build._compiler() == [str(folder / "compiler")]


def test_an_open_quote_is_no_compiler(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", 'g++ "-m64')
    with pytest.raises(build.UnavailableError, match='CXX is no command: g\\+\\+ "-m64'):
        build.built(Kernels)


# The damaged file is another than the one that this process has mapped.
def truncated(path: Path) -> None:
    beginning = path.read_bytes()[:5000]
    path.unlink()
    path.write_bytes(beginning)


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def no_library(path: Path) -> None:
    """Its digest is right."""
    path.unlink()
    text = path.with_name("text")
    text.write_text("no library")
    text.rename(path.with_name(f"{path.stem.rsplit('-', 1)[0]}-{build._digest(text)}.so"))


@pytest.mark.parametrize("damage", [truncated, empty, no_library])
def test_a_damaged_file_is_replaced(cache: Path, tmp_path: Path, monkeypatch, damage) -> None:
    build.built(Kernels)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    damage(kept)
    monkeypatch.setattr(loading, "_loaded", [])
    assert loading.loaded().kernels is not None
    assert kept.read_bytes() == whole
    assert runs(tmp_path) == 2


def test_a_cache_that_cannot_be_written(cache: Path, tmp_path: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert loading.loaded().kernels is not None
    proof.prove(loading.required())  # after the temporary folder has gone


def test_processes_that_build_at_the_same_time(cache: Path, tmp_path: Path, monkeypatch) -> None:
    compiler(tmp_path, monkeypatch, (tmp_path / "compiler").read_text() + "sleep 0.5")
    code = "from dipdefense.native import loading; print(loading.loaded().reason)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]  # fmt: skip
    said = {process.communicate()[0].strip() for process in processes}
    assert said == {"the kernels compiled on this machine do what torch's operators do"}
    assert len(list(cache.iterdir())) == 1


WITHOUT = {
    "not there": (None, r"there is no C\+\+ compiler \(/nowhere/c\+\+\)"),
    "fails": ("echo 'kernels.cpp:1: error: no vectors' >&2; exit 1", "fails: kernels.cpp:1: error: no vectors"),
    "makes nothing": ("exit 0", "cannot be loaded"),
    "makes no library": ('for out; do :; done; echo text > "$out"', "cannot be loaded"),
}


@pytest.mark.parametrize(("script", "reason"), WITHOUT.values(), ids=WITHOUT)
def test_without_a_compiler_torch_does_it_all(cache, tmp_path, monkeypatch, tiny, script, reason) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    if script is not None:
        compiler(tmp_path, monkeypatch, script)
    images = torch.rand(1, 3, 32, 32)
    assert reconstruct(images, budgets=(1,), config=tiny).backend == "torch"
    assert '"native" is not there' in explain("cpu")["backend"]
    with pytest.raises(ValueError, match=reason):
        reconstruct(images, budgets=(1,), config=tiny, backend="native")


def test_without_a_temporary_folder_the_reason_is_told(tmp_path: Path, monkeypatch) -> None:
    compiler(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(build.UnavailableError, match="there is no temporary folder to compile in"):
        build.built(Kernels)


CORES = {
    "x86": "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\nflags\t\t: fpu avx2\n",
    "another x86": "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nflags\t\t: fpu avx2\n",
    "ARM": "Features\t: fp asimd\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd0c\n",
    "another ARM": "Features\t: fp asimd\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n",
    "a feature more": "Features\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd0c\n",
}


def test_processors_that_share_a_cache_have_libraries_of_their_own(tmp_path: Path, monkeypatch) -> None:
    compiler(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setattr("dipdefense.processor.features", features.__wrapped__)
    keys = set()
    for core in CORES.values():
        monkeypatch.setattr(Path, "read_text", lambda self, core=core: f"processor\t: 0\n{core}")
        keys.add(build._key(build._compiler()))
    assert len(keys) == len(CORES)


def test_wrong_kernels_are_set_aside(cache: Path, tiny, monkeypatch) -> None:
    def wrong(kernels: Kernels) -> None:
        raise proof.WrongError("the last layer is off by 1")

    monkeypatch.setattr(proof, "prove", wrong)
    assert "the compiled kernels are set aside: the last layer is off by 1." in explain("cpu")["backend"]
    with pytest.raises(ValueError, match="off by 1"):
        reconstruct(torch.rand(1, 3, 32, 32), budgets=(1,), config=tiny, backend="native")


def test_the_environment_switches_them_off(native: Kernels, tiny, monkeypatch) -> None:
    images = torch.rand(1, 3, 32, 32)
    assert reconstruct(images, budgets=(1,), config=tiny, backend="native").backend == "native"
    monkeypatch.setenv(loading.VARIABLE, "0")
    with pytest.raises(ValueError, match=loading.VARIABLE):
        reconstruct(images, budgets=(1,), config=tiny, backend="native")
    assert loading.VARIABLE in explain("cpu")["backend"]


def test_the_source_is_in_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["dipdefense"]
    packaged = {path.name for pattern in patterns for path in (ROOT / "dipdefense").glob(pattern)}
    # By name: the package that runs here may be the installed one.
    assert packaged >= {path.name for path in (build.SOURCE, *build.HEADERS)}
    assert len(build.HEADERS) == 9


@pytest.mark.slow
@pytest.mark.parametrize("narrower", ["-mno-avx512f", "-march=x86-64"])
def test_narrower_vectors_do_what_torchs_operators_do(narrower: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("needs g++ on an x86 processor")
    script = tmp_path / "narrower"
    script.write_text(f'#!/bin/sh\nexec {compiler} "$@" {narrower}\n')
    script.chmod(0o755)
    # That test's fixture compiles the kernels and compares them with torch's operators.
    test = "tests/engine/test_native_iterations.py::test_a_diverging_image_leaves_the_others_alone"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", test], env={**os.environ, "CXX": str(script)}, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr
