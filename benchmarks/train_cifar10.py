"""Train the small CIFAR-10 classifiers of the tables at 32×32 and of Figure 3.

    python benchmarks/train_cifar10.py --data cifar10-images.zip --out cifar10-cnn.pt
    python benchmarks/train_cifar10.py --data cifar10-images.zip --out cifar10-robust.pt --adversarial 0.5
    python benchmarks/train_cifar10.py … --adversarial 0.5 --initial cifar10-cnn.pt --epochs 2

Takes about a quarter of an hour on one CPU core, and twice that with --adversarial, which is "fast" adversarial
training (Wong et al. 2020): every batch is attacked by one step of L2 PGD from a random point of the ball, where Ilyas
et al. 2019 take seven steps. Writes the weights in 16 bits and a record with their accuracy on the test split, clean
and under PGD. The same seed gives the same weights on the same machine with the same number of threads. A killed run
resumes after the last whole epoch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dipdefense.attacks import pgd_l2
from dipdefense.classifiers import Classifier, load, untrained_cifar10
from dipdefense.datasets import ImageFiles, cifar10
from dipdefense.evaluation import circumstances
from dipdefense.evaluation.provenance import digest
from dipdefense.files import write_atomically

EPOCHS, BATCH, PEAK_RATE = 6, 128, 0.1
# The largest shift of a training image in pixels.
SHIFT = 4
# The one step of training exceeds the radius and is projected back, which Wong et al. 2020 found best.
FAST_STEP = 1.25
# The attack under which robust accuracy is measured.
EPSILON, STEP, STEPS, ATTACKED = 0.5, 0.1, 20, 1000


def pixels(data: ImageFiles) -> tuple[Tensor, Tensor]:
    """All images as bytes, (N, 3, 32, 32), and their labels.

    Bytes take a quarter of the memory of floats.
    """
    parts = [data.stack(range(start, min(start + 1000, len(data)))) for start in range(0, len(data), 1000)]
    images = torch.cat([(part.images * 255).round().to(torch.uint8) for part in parts])
    return images, torch.cat([part.labels for part in parts])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, (N, 3, H, W) bytes, randomly flipped and shifted.

    The result is floats in [0, 1]. A shift fills the border by reflection.
    """
    count, _, height, width = images.shape
    padded = F.pad(images / 255, (SHIFT,) * 4, mode="reflect")
    down, right = torch.randint(2 * SHIFT + 1, (2, count), generator=generator)
    flipped = torch.rand(count, generator=generator) < 0.5
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.where(flipped[:, None], torch.arange(width).flip(0), torch.arange(width))
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int,
    checkpoint: Path,
    adversarial: float = 0.0,
    precision: str = "fp32",
    initial: str = "",
) -> None:
    """Train in place, resuming after the last whole epoch in ``checkpoint``, if any.

    Args:
        classifier: with its initial weights.
        images: (N, 3, 32, 32) bytes.
        labels: (N,) integers.
        epochs: passes over the images.
        seed: of their order, their augmentation and the attack.
        checkpoint: file of the last whole epoch.
        adversarial: the radius ε of the L2 attack in training; 0 trains on clean images.
        precision: "fp32", or "bf16" for the convolutions' operands.
        initial: digest of the initial weights, if they are not random.

    Raises:
        SystemExit: the checkpoint belongs to another training.
    """
    training = {
        "epochs": epochs, "seed": seed, "adversarial": adversarial, "precision": precision, "initial": initial,
    }  # fmt: skip
    network = classifier.network.requires_grad_(True).to(memory_format=torch.channels_last)
    steps = -(-len(images) // BATCH)
    optimiser = torch.optim.SGD(network.parameters(), lr=PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=epochs * steps)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["training"] != training:
            raise SystemExit(
                f"{checkpoint} belongs to another training: {state['training']}; delete it, or give another --out"
            )
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        done = state["done"]
    for epoch in range(done, epochs):
        network.train()
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        order = torch.randperm(len(images), generator=generator)
        for places in tqdm(torch.split(order, BATCH), desc=f"epoch {epoch + 1} of {epochs}"):
            seen = augment(images[places], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                if adversarial:
                    seen = pgd_l2(
                        classifier, seen, labels[places], epsilon=adversarial, step=FAST_STEP * adversarial, steps=1,
                        generator=generator,
                    )  # fmt: skip
                loss = F.cross_entropy(classifier(seen).float(), labels[places])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        whole = {
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
        }
        fresh = checkpoint.with_suffix(".tmp")
        torch.save(whole | {"done": epoch + 1, "training": training}, fresh)
        fresh.replace(checkpoint)
    classifier.eval().requires_grad_(False)


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor, *, attacked: bool = False) -> float:
    """The share of images that are classified correctly, on request under L2 PGD.

    The images are (N, 3, 32, 32) bytes.
    """
    correct = 0
    for part, truth in zip(torch.split(images / 255, 500), torch.split(labels, 500), strict=True):
        if attacked:
            part = pgd_l2(classifier, part, truth, epsilon=EPSILON, step=STEP, steps=STEPS)
        with torch.inference_mode():
            correct += int((classifier(part).argmax(dim=1) == truth).sum())
    return correct / len(images)


def measured(classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int) -> dict[str, Any]:
    """Clean and robust accuracy in per cent, for a record.

    The robust accuracy is on a random sample of the images.
    """
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:ATTACKED]
    robust = accuracy(classifier, images[chosen], labels[chosen], attacked=True)
    attack = {"attack": "L2 PGD", "epsilon": EPSILON, "step": STEP, "steps": STEPS, "n": len(chosen)}
    return {
        "clean": {"accuracy, %": 100 * accuracy(classifier, images, labels), "n": len(images)},
        "attacked": {"accuracy, %": 100 * robust, **attack},
    }


def main() -> None:
    """Read the command line, train, save, and test what was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="zip archive or folder with train/cat/any.jpg")
    parser.add_argument("--out", type=Path, default=Path("cifar10-cnn.pt"), help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--adversarial", type=float, default=0.0, metavar="ε", help="L2, such as 0.5 (default: none)")
    parser.add_argument("--initial", type=Path, help="weights to begin with, for fine-tuning (default: random ones)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")
    given = parser.parse_args()
    if given.epochs < 1 or not 0 <= given.adversarial < float("inf"):
        parser.error(
            f"--epochs must be at least 1 and --adversarial at least 0, got {given.epochs}, {given.adversarial}"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    begun = circumstances(torch.device("cpu"))
    torch.manual_seed(given.seed)
    classifier = untrained_cifar10() if given.initial is None else load("cifar10-cnn", weights=given.initial)
    checkpoint = given.out.with_suffix(".checkpoint.pt")
    training = {name: getattr(given, name) for name in ("epochs", "seed", "adversarial", "precision")}
    training["initial"] = "" if given.initial is None else digest([given.initial.read_bytes()])
    train(classifier, *pixels(cifar10(given.data, split="train")), checkpoint=checkpoint, **training)
    state = classifier.network.state_dict()
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(halves, given.out)
    test = pixels(cifar10(given.data, split="test"))
    found = measured(load("cifar10-cnn", weights=given.out), *test, seed=given.seed)
    record = {**begun, "training": training, "weights": digest([given.out.read_bytes()]), "test split": found}
    write_atomically(given.out.with_suffix(".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    # Last, so a run that is killed during its tests only repeats these.
    checkpoint.unlink()
    clean, attacked = (found[name]["accuracy, %"] for name in ("clean", "attacked"))
    print(f"{given.out}: {clean:.2f} % of {len(test[0])} test images, {attacked:.1f} % under L2 PGD with ε={EPSILON}")


if __name__ == "__main__":
    main()
