"""The files that a command reads, and the names of those that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dipdefense.files import SUFFIXES, printable
from dipdefense.folders import files_below


@dataclass(frozen=True)
class Item:
    """An image file below IN.

    Attributes:
        name: its printable path below IN, with forward slashes; for a single file its own name.
        path: its path on this machine.
    """

    name: str
    path: Path


def found(source: Path, *, without: Path | None = None) -> list[Item]:
    """The image files of IN: the file itself, or all below the folder in order.

    Hidden files below the folder are left out, and so are all files in hidden folders.

    Args:
        source: a file or a folder.
        without: a folder below it to leave out: the command's own OUT.

    Raises:
        ValueError: there are no images.
        OSError: a folder cannot be listed.
    """
    if not source.is_dir():
        return [Item(printable(source.name), source)]
    names = [PurePosixPath(name) for name in files_below(source)]
    if without is not None and source.resolve() in without.resolve().parents:
        own = without.resolve().relative_to(source.resolve())
        names = [name for name in names if not name.is_relative_to(own)]
    images = [
        name
        for name in names
        if name.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in name.parts)
    ]
    if not images:
        raise ValueError(f"there are no images ({', '.join(SUFFIXES)}) in {printable(source)}")
    return [Item(printable(name), source / name) for name in images]


def output_names(items: Sequence[Item], source: Path, *, full: bool) -> list[PurePosixPath]:
    """The path of each item's PNG below OUT.

    It is the item's path below IN, with the suffix replaced by .png.

    Args:
        items: as ``found`` returns them.
        source: IN.
        full: append .png to the suffix instead, as in a.jpg.png.

    Raises:
        ValueError: two files would get the same name.
    """
    names: dict[PurePosixPath, Item] = {}
    for item in items:
        own = PurePosixPath(item.path.relative_to(source).as_posix() if source.is_dir() else item.path.name)
        if own.suffix.lower() != ".png":
            own = own.with_name(f"{own.name}.png") if full else own.with_suffix(".png")
        if own in names:
            advice = "rename one" if full else "rename one, or give --full-names, which makes a.jpg.png of a.jpg"
            raise ValueError(f"{names[own].name} and {item.name} would both become {printable(own)}; {advice}")
        names[own] = item
    return list(names)


def split_out(source: Path, out: Path, *, several: bool = False) -> tuple[Path, PurePosixPath | None]:
    """The folder to write into, and the output's name where OUT is a single file.

    Args:
        source: IN.
        out: OUT.
        several: whether each file has several outputs, so OUT must be a folder.

    Raises:
        ValueError: OUT is of the wrong kind, is IN itself, or has another suffix than .png.
    """
    folder = source.is_dir() or several or out.is_dir() or not out.suffix
    if folder and out.exists() and not out.is_dir():
        raise ValueError(f"OUT must be a folder here, and {printable(out)} is a file")
    if folder and source.is_dir() and out.exists() and out.samefile(source):
        raise ValueError("IN and OUT are the same folder; give another OUT, so that no original is replaced")
    if not folder and out.suffix.lower() != ".png":
        raise ValueError(
            f"results are written as PNG, since a lossy format would change them; give a name that ends in .png, "
            f"not {printable(out)!r}, or a folder"
        )
    return (out, None) if folder else (out.parent, PurePosixPath(out.name))


def refuse_originals(items: Sequence[Item], outputs: Sequence[Path]) -> None:
    """Refuse to overwrite a file that is read.

    Raises:
        ValueError: an output is one of the items' files.
    """
    originals = {item.path.resolve() for item in items}
    for output in outputs:
        if output.resolve() in originals:
            raise ValueError(f"{printable(output)} is one of the originals; give another OUT")
