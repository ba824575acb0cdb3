"""The tables of the paper, measured.

Images, attacks and seeds are in ``protocol``, the work in ``runner``, outcomes in ``store``, numbers in
``statistics``, tables and plots in ``report``, and what was published in ``paper``.

Example:
    >>> setting = parse_arguments(table=2, description="Table 2", arguments=["--images", "20", "--device", "cpu"])
    >>> write_report(measure(setting), table=2, folder=setting.out)  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dipdefense
from dipdefense import classifiers
from dipdefense.checks import check_backend, operand_dtype
from dipdefense.datasets import LabelledImages, cifar10, image_folder, packaged_images
from dipdefense.evaluation.protocol import CONDITIONS, Images, Setting, choose, parse_arguments
from dipdefense.evaluation.runner import deep_image_prior, randomisation, run, undefended
from dipdefense.evaluation.store import Key, Run, Store, read_export
from dipdefense.paper.published import reductions
from dipdefense.paper.report import write_report

__all__ = ["Run", "Setting", "circumstances", "measure", "parse_arguments", "read_export", "reproduce", "write_report"]

STORE = "outcomes.sqlite"
"""The file of stored outcomes in a report's folder."""


def reproduce(*, table: int, description: str) -> None:
    """What the scripts table1.py and table2.py do: read the command line, measure, write the report, and print it."""
    setting = parse_arguments(table=table, description=description)
    text, *others = write_report(measure(setting), table=table, folder=setting.out)
    print(text.read_text())
    print("written:", *[text, *others], f"and {setting.out / STORE}")


def measure(setting: Setting) -> Run:
    """Bring the store in ``setting.out`` to where it has all that a table needs, and return just that.

    Interrupted or killed, it goes on where it stopped when it is called again. A folder with no store but with exported
    records, such as those of ``benchmarks/results``, is gone on with in the same way.

    Raises:
        ValueError: there are fewer correctly classified images, or classes, than asked for; an export is none; or the
            backend does not run on the device.
        FileNotFoundError: there is no such data.
        ImportError: an optional package is missing.
    """
    device = torch.device(setting.device)
    check_backend(setting.backend, device)
    classifier = classifiers.load(setting.classifier, weights=setting.weights, device=device)
    source, data = _images(setting.data, classifier)
    chosen = choose(
        data, classifier, images=setting.images, classes=setting.classes, seed=setting.seeds[0], device=device
    )
    _, *shape = data.stack(chosen.indices[:1]).images.shape
    config = replace(setting.config, scales=setting.config.scales_for(*shape[1:]))
    if "dip" in setting.defences and (
        reduced := reductions(config, images=len(chosen.indices), budgets=setting.budgets, shape=shape)
    ):
        print(f"REDUCED SETTING, NOT THE PAPER'S: {'; '.join(reduced)}.", file=sys.stderr)
    configuration = {
        "classifier": classifier.name,
        "weights": _digest(value.cpu().numpy().tobytes() for value in classifier.state_dict().values()),
        "preprocess": str(classifier.preprocess),
        "input": shape,
        "data": source,
        "images": _digest(f"{name} {label}\n".encode() for name, label in zip(data.ids, data.labels, strict=True)),
        "classes": setting.classes,
        "selection seed": setting.seeds[0],
        "dip": asdict(config),
        "precision": str(operand_dtype(setting.precision, device)).removeprefix("torch."),
        # A seed's draws are others on another kind of device.
        "device": device.type,
        "dipdefense": dipdefense.__version__,
    }
    if setting.backend != "torch":
        # Its noise or its roundings are others, so its outcomes are kept apart.
        configuration["backend"] = setting.backend
    known = (
        undefended(),
        randomisation(),
        deep_image_prior(setting.budgets, config=config, precision=setting.precision, backend=setting.backend),
    )
    defences = [defence for defence in known if defence.name in setting.defences]
    exports = [read_export(path) for path in sorted(setting.out.glob("table*.jsonl"))]
    with Store(setting.out / STORE) as store:
        for exported in exports:
            store.restore(exported)
        key = run(
            store,
            configuration,
            circumstances(device) | {"batch": setting.batch},
            data=data,
            chosen=chosen,
            classifier=classifier,
            conditions={name: CONDITIONS[name] for name in setting.conditions},
            defences=defences,
            seeds=setting.seeds,
            device=device,
            batch=setting.batch,
            progress=setting.progress,
        )
        stored = store.load(key)
    # The store may have more from other calls: more images, conditions, budgets or seeds.
    asked = {
        Key(condition, defence.name, budget, seed, data.ids[index])
        for condition in setting.conditions
        for defence in defences
        for budget in defence.budgets
        for seed in setting.seeds
        for index in chosen.indices
    }
    records = tuple(record for record in stored.records if record.key in asked)
    sessions = {session: stored.sessions[session] for session in sorted({record.session for record in records})}
    return Run(stored.configuration, records, sessions)


def circumstances(device: torch.device) -> dict[str, Any]:
    """What accompanies the outcomes of this process without deciding them: command, commit, hardware, versions."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        cpu = Path("/proc/cpuinfo")
        models = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
        hardware = f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads"
    packages = ("torch", "torchvision", "adversarial-robustness-toolbox", "numpy")
    # Folders are named without the way to them, which says more of the machine than of the run.
    words = [word if word.startswith("-") else Path(word).name for word in sys.argv[1:]]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "commit": _commit(Path(dipdefense.__file__).parents[1]),
        "hardware": hardware,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
    }


def _images(path: Path | None, classifier: classifiers.Classifier) -> tuple[str, Images]:
    """What reports call the data, and the data: of the kind that the classifier is for."""
    small = classifier.categories == classifiers.CIFAR10_CATEGORIES
    if path is None:
        packaged = packaged_images("cifar10" if small else "imagenet", preprocess=classifier.preprocess)
        return f"packaged {'CIFAR-10' if small else 'ImageNet'} images", _Packaged(packaged)
    reader = cifar10 if small else image_folder
    return path.name, reader(path, preprocess=classifier.preprocess)


def _commit(root: Path) -> str:
    """The commit of a checkout, "-dirty" if it was changed since; or that there is none."""
    if not (root / ".git").exists():
        return "installed, no checkout"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _digest(parts: Iterable[bytes]) -> str:
    """The first 16 hexadecimal digits of SHA-256."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


class _Packaged:
    """Images that are in memory already, as a data set."""

    def __init__(self, images: LabelledImages) -> None:
        self.ids = images.ids
        self.labels: list[int] = images.labels.tolist()
        self._images = images

    def stack(self, indices: Sequence[int]) -> LabelledImages:
        chosen = list(indices)
        ids = tuple(self.ids[index] for index in chosen)
        return replace(self._images, ids=ids, images=self._images.images[chosen], labels=self._images.labels[chosen])
