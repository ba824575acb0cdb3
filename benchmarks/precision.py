"""bf16, or the native kernels, against fp32 by torch's operators.

    python benchmarks/precision.py --setting compact-224 --data imagenet-sample/val
    python benchmarks/precision.py --setting architecture-1-32 --data cifar10-images.zip --weights cifar10-cnn.pt
    python benchmarks/precision.py --setting architecture-2-32 --against native --data cifar10-images.zip \
        --weights benchmarks/weights/cifar10-external.pt

Is their difference within that of two seeds of fp32? Correctly classified images are attacked by FGSM at ε = 5
(defence-unaware) and fitted both ways over the whole budget, with each seed from the same initial weights and fixed
noise. The yardstick is the difference between two seeds of fp32: the defence is random by design and the optimisation
chaotic, so a rounding error may grow to this difference but not beyond. The native kernels also generate other fresh
noise. An image's two differences are paired; intervals are bootstrapped over the images.

The folder gets ``fp32.jsonl`` and ``bf16.jsonl``, ``native.jsonl`` or ``native-bf16.jsonl``, rewritten after every fit:
a killed run resumes by the same command, and two processes can share the work with ``--only``. The report and the plot
cover the images that both files have with every seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from precision_report import as_markdown, collect, plot
from speed.quality import psnr
from torch import Tensor

from dipdefense import DIPConfig, classifiers
from dipdefense.attacks import fgsm
from dipdefense.checks import Precision
from dipdefense.config import Backend
from dipdefense.datasets import LabelledImages
from dipdefense.evaluation import circumstances
from dipdefense.evaluation.protocol import choose
from dipdefense.evaluation.provenance import weights_digest
from dipdefense.evaluation.subject import open_data
from dipdefense.files import write_atomically
from dipdefense.reconstruct import reconstruct
from dipdefense.seeds import derive_seed

Way = Literal["fp32", "bf16", "native", "native-bf16"]
WAYS: dict[Way, tuple[Precision, Backend]] = {
    "fp32": ("fp32", "torch"),
    "bf16": ("bf16", "torch"),
    "native": ("fp32", "native"),
    "native-bf16": ("bf16", "native"),
}
EPSILON = 5
"""The attack's strength in units of 1/255."""

STRIDE = 10
"""Iterations between two stored losses."""


class Setting(NamedTuple):
    """A network, its classifier, the default number of images, and the batch size."""

    config: DIPConfig
    classifier: str
    images: int
    batch: int


SETTINGS = {
    "compact-224": Setting(DIPConfig.compact(), "efficientnet-lite0", images=12, batch=1),
    "architecture-1-32": Setting(DIPConfig.architecture_1(), "cifar10-cnn", images=50, batch=10),
    "architecture-2-32": Setting(DIPConfig.architecture_2(), "cifar10-cnn", images=50, batch=50),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--setting", choices=list(SETTINGS), required=True)
    add("--data", type=Path, help="ImageNet folder, or CIFAR-10 folder or archive (default: packaged images)")
    add("--weights", type=Path, help="of the classifier; needed at 32×32, from train_cifar10.py")
    add("--images", type=int, help="default: 12 at 224×224, 50 at 32×32")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="at least two (default: 0 1)")
    add("--iterations", type=int, default=1000, help="default: %(default)s")
    add("--every", type=int, default=50, help="iterations between budgets (default: %(default)s)")
    add(
        "--against",
        choices=list(WAYS)[1:],
        default="bf16",
        help="what fp32 is compared with (default: %(default)s)",
    )
    add("--only", choices=list(WAYS), help="leave the other to another process")
    add("--report", action="store_true", help="fit nothing; report on the records there are")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    add("--out", type=Path, help="default: benchmarks/results/precision-SETTING, native-… or native-bf16-SETTING")
    given = parser.parse_args(arguments)
    if len(set(given.seeds)) < max(2, len(given.seeds)):
        parser.error(f"--seeds needs two different numbers or more, got {given.seeds}")
    if given.every < 1 or given.every % STRIDE or given.iterations < 1 or given.iterations % given.every:
        parser.error(f"--every must be a multiple of {STRIDE}, and --iterations one of --every")
    if given.images is not None and given.images < 1:
        parser.error(f"--images must be at least 1, got {given.images}")
    if given.only not in (None, "fp32", given.against):
        parser.error(f"--only must be fp32 or {given.against}, got {given.only}")
    given.images = given.images or SETTINGS[given.setting].images
    kind = "precision" if given.against == "bf16" else given.against
    given.out = given.out or Path(__file__).parent / "results" / f"{kind}-{given.setting}"
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Complete the records, write the report and the plot, and print the report."""
    given = parse_arguments(arguments)
    if not given.report:
        measure(given)
    records = {way: Record(given.out / f"{way}.jsonl") for way in ("fp32", given.against)}
    measured = collect({way: record.fits for way, record in records.items()})
    if measured is None:
        print("nothing to report yet: no image has been fitted both ways with two seeds")
        return
    configuration, other = (record.head["configuration"] for record in records.values())
    if configuration != other:
        raise ValueError(f"the records in {given.out} are of two configurations: {configuration} and {other}")
    budgets = configuration["budgets"]
    text = "\n".join(as_markdown(measured, budgets, {way: record.head for way, record in records.items()}))
    write_atomically(given.out / "report.md", text + "\n")
    plot(measured, budgets, given.out / "precision.png", stride=STRIDE)
    print(text)


class Record:
    """One way's file, with a line for each fit.

    The first line has the configuration and the sessions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.head: dict[str, Any] = lines[0] if lines else {"configuration": None, "sessions": []}
        self.fits: dict[tuple[int, str], dict[str, Any]] = {}
        self._keep(lines[1:])

    def _keep(self, fits: Sequence[dict[str, Any]]) -> None:
        self.fits |= {(fit["seed"], fit["image"]): fit for fit in fits}

    def open_session(self, configuration: Mapping[str, Any], session: Mapping[str, Any]) -> int:
        """The number of a new session.

        Raises:
            ValueError: the file has fits of another configuration.
        """
        stored = self.head["configuration"] or configuration
        if other := [name for name in configuration if stored.get(name) != configuration[name]]:
            raise ValueError(f"{self.path} has fits with another {', '.join(other)}; give another --out")
        self.head["configuration"] = dict(configuration)
        self.head["sessions"].append(dict(session))
        return len(self.head["sessions"]) - 1

    def add(self, fits: Sequence[dict[str, Any]]) -> None:
        """Store fits, all or none of them if the process is killed."""
        self._keep(fits)
        lines = [json.dumps(line, ensure_ascii=False) for line in (self.head, *self.fits.values())]
        write_atomically(self.path, "\n".join(lines) + "\n")


def measure(given: argparse.Namespace) -> None:
    """Fit every image with every seed in each way asked for, except what is stored."""
    setting, device = SETTINGS[given.setting], torch.device(given.device)
    classifier = classifiers.load(setting.classifier, weights=given.weights, device=device)
    clean = correct_images(given, classifier, device)
    attacked = fgsm(classifier, clean.images, clean.labels, epsilon=EPSILON)
    configuration = {
        "setting": given.setting,
        "dip": json.loads(json.dumps(setting.config.to_json())),
        "classifier": f"{classifier.name}, {weights_digest(classifier)}",
        "data": given.data.name if given.data else "packaged images",
        "attack": f"FGSM, ε = {EPSILON}/255, defence-unaware",
        "budgets": list(range(given.every, given.iterations + 1, given.every)),
        "device": device.type,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for way in (given.only,) if given.only else ("fp32", given.against):
        record = Record(given.out / f"{way}.jsonl")
        session = record.open_session(configuration, circumstances(device))
        for seed in given.seeds:
            missing = [index for index, name in enumerate(clean.ids) if (seed, name) not in record.fits]
            for chunk in (missing[first : first + setting.batch] for first in range(0, len(missing), setting.batch)):
                fits = fit(
                    subset(clean, chunk), attacked[chunk], seed, classifier,
                    config=setting.config, budgets=configuration["budgets"], way=way,
                )  # fmt: skip
                record.add([found | {"session": session} for found in fits])
                left = len(missing) - missing.index(chunk[-1]) - 1
                seconds = sum(found["seconds"] for found in fits)
                print(f"{way}, seed {seed}: {len(fits)} fitted in {seconds:.0f} s, {left} left", flush=True)


def correct_images(
    given: argparse.Namespace, classifier: classifiers.Classifier, device: torch.device
) -> LabelledImages:
    """Correctly classified images, on the device; from ``--data`` in random order.

    Raises:
        ValueError: there are too few.
    """
    _, data = open_data(given.data, classifier)
    packaged = given.data is None
    indices = range(len(data.ids)) if packaged else choose(data, classifier, images=given.images, device=device).indices
    found = data.stack(indices)
    images, labels = found.images.to(device), found.labels.to(device)
    with torch.inference_mode():
        right = (classifier(images).argmax(dim=1) == labels).nonzero()[: given.images, 0].tolist()
    if len(right) < given.images:
        raise ValueError(f"--images {given.images} was asked for, but only {len(right)} are classified correctly")
    return subset(dataclasses.replace(found, images=images, labels=labels), right)


def subset(images: LabelledImages, indices: Sequence[int]) -> LabelledImages:
    """The images at these positions."""
    chosen = list(indices)
    ids = tuple(images.ids[index] for index in chosen)
    return dataclasses.replace(images, ids=ids, images=images.images[chosen], labels=images.labels[chosen])


def fit(
    clean: LabelledImages,
    attacked: Tensor,
    seed: int,
    classifier: classifiers.Classifier,
    *,
    config: DIPConfig,
    budgets: Sequence[int],
    way: Way,
) -> list[dict[str, Any]]:
    """Fit the images, and return one record for each.

    A record has the loss curve, and at each budget the PSNRs, the prediction and the true class's confidence.
    """
    started = time.perf_counter()
    # Derived from the image, so neither the batch nor the way changes initial weights and fixed noise.
    seeds = [derive_seed(seed, "dip", name) for name in clean.ids]
    precision, backend = WAYS[way]
    run = reconstruct(attacked, budgets=tuple(budgets), config=config, seed=seeds, precision=precision, backend=backend)
    losses = run.losses[STRIDE - 1 :: STRIDE].cpu()
    seconds = (time.perf_counter() - started) / len(clean.ids)
    with torch.inference_mode():
        scores = torch.stack([classifier(images) for images in (attacked, *run.images)]).softmax(dim=2)
    predictions = scores.argmax(dim=2)
    confidences = scores.gather(2, clean.labels.expand(len(scores), -1)[..., None])[..., 0]
    to_attacked, to_clean = psnr(run.images, attacked), psnr(run.images, clean.images)
    return [
        {
            "image": name,
            "label": int(clean.labels[index]),
            "seed": seed,
            "status": run.status[index],
            "seconds": round(seconds, 2),
            "undefended": {"prediction": int(predictions[0, index]), "confidence": _rounded(confidences[0, index])},
            "losses": _rounded(losses[:, index]),
            "psnr_attacked": _rounded(to_attacked[:, index]),
            "psnr_clean": _rounded(to_clean[:, index]),
            "predictions": predictions[1:, index].tolist(),
            "confidences": _rounded(confidences[1:, index]),
        }
        for index, name in enumerate(clean.ids)
    ]


def _rounded(values: Tensor) -> Any:
    """A tensor of at most one axis as Python numbers of six digits."""
    values = values.double().cpu()
    return float(f"{values.item():.6g}") if values.ndim == 0 else [float(f"{value:.6g}") for value in values.tolist()]


if __name__ == "__main__":
    main()
