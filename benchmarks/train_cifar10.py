"""Train the small CIFAR-10 classifier that the tables at 32×32 pixels are measured on.

    python benchmarks/train_cifar10.py --data cifar10-images.zip --out cifar10-cnn.pt

Takes about a quarter of an hour on one CPU core and ends with the accuracy on the test split. The same seed gives the
same weights on the same machine with the same number of threads. Killed, it resumes after the last whole epoch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dipdefense.classifiers import Classifier, load, untrained_cifar10
from dipdefense.datasets import ImageFiles, cifar10

EPOCHS, BATCH, PEAK_RATE = 6, 128, 0.1
# Pixels that a training image may be shifted by.
SHIFT = 4


def pixels(data: ImageFiles) -> tuple[Tensor, Tensor]:
    """All images as bytes, (N, 3, 32, 32), and their labels: a quarter of the memory that floats would take."""
    parts = [data.stack(range(start, min(start + 1000, len(data)))) for start in range(0, len(data), 1000)]
    images = torch.cat([(part.images * 255).round().to(torch.uint8) for part in parts])
    return images, torch.cat([part.labels for part in parts])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bytes to floats in [0, 1], each image flipped by chance and shifted with its border reflected."""
    count, _, height, width = images.shape
    padded = F.pad(images / 255, (SHIFT,) * 4, mode="reflect")
    down, right = torch.randint(2 * SHIFT + 1, (2, count), generator=generator)
    flipped = torch.rand(count, generator=generator) < 0.5
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.where(flipped[:, None], torch.arange(width).flip(0), torch.arange(width))
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(classifier: Classifier, images: Tensor, labels: Tensor, *, epochs: int, seed: int, checkpoint: Path) -> None:
    """Train in place, from the last whole epoch that ``checkpoint`` has, if any."""
    network = classifier.network.requires_grad_(True)
    steps = -(-len(images) // BATCH)
    optimiser = torch.optim.SGD(network.parameters(), lr=PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=epochs * steps)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if (state["epochs"], state["seed"]) != (epochs, seed):
            raise SystemExit(f"{checkpoint} is of another training ({state['epochs']} epochs, seed {state['seed']})")
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        done = state["done"]
    for epoch in range(done, epochs):
        network.train()
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        order = torch.randperm(len(images), generator=generator)
        for places in tqdm(torch.split(order, BATCH), desc=f"epoch {epoch + 1} of {epochs}"):
            optimiser.zero_grad()
            loss = F.cross_entropy(classifier(augment(images[places], generator)), labels[places])
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        whole = {
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
        }
        fresh = checkpoint.with_suffix(".tmp")
        torch.save(whole | {"done": epoch + 1, "epochs": epochs, "seed": seed}, fresh)
        fresh.replace(checkpoint)
    classifier.eval().requires_grad_(False)


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of images that are classified correctly."""
    with torch.inference_mode():
        predictions = torch.cat([classifier(part / 255).argmax(dim=1) for part in torch.split(images, 1000)])
    return (predictions == labels).float().mean().item()


def main() -> None:
    """Read the command line, train, save, and test what was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="zip archive or folder with train/cat/any.jpg")
    parser.add_argument("--out", type=Path, default=Path("cifar10-cnn.pt"), help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    classifier = untrained_cifar10()
    checkpoint = given.out.with_suffix(".checkpoint.pt")
    images, labels = pixels(cifar10(given.data, split="train"))
    train(classifier, images, labels, epochs=given.epochs, seed=given.seed, checkpoint=checkpoint)
    torch.save(classifier.network.state_dict(), given.out)
    checkpoint.unlink()
    images, labels = pixels(cifar10(given.data, split="test"))
    share = accuracy(load("cifar10-cnn", weights=given.out), images, labels)
    print(f"{given.out}: {100 * share:.2f} % of {len(images)} test images")


if __name__ == "__main__":
    main()
