"""Adds the pictures and tables of the records to the site.

The repository has each of them only once, outside of the site's pages.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FILES = ("examples/*.png", "benchmarks/results/*/*.png", "benchmarks/results/*.csv")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files under ``records/``, by folder and name."""
    for pattern in FILES:
        for path in sorted(ROOT.glob(pattern)):
            where = f"records/{path.parent.name}/{path.name}"
            files.append(File.generated(config, where, abs_src_path=str(path)))
    return files
