"""Other libraries' models behind the defence: logits, and the images' gradient."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch import Tensor, nn

from dipdefense import DIPPurifier
from dipdefense.attacks import fgsm
from dipdefense.classifiers import Logits


def check(purifier: DIPPurifier, classifier: nn.Module, images: Tensor, classes: int) -> None:
    """Check that logits are the reconstructions' and an attack moves the images."""
    defended = nn.Sequential(purifier, classifier)
    with torch.no_grad():
        logits = defended(images)
        assert logits.shape == (len(images), classes)
        assert torch.equal(logits, classifier(purifier(images)))
    attacked = fgsm(defended, images, torch.tensor([1, 2]), epsilon=4)
    assert (attacked - images).abs().max() * 255 == pytest.approx(4, abs=1e-3)


def test_torchvision(purifier: DIPPurifier, images: Tensor) -> None:
    torchvision = importlib.import_module("torchvision")
    check(purifier, Logits(torchvision.models.resnet18(weights=None, num_classes=10).eval()), images, 10)


def test_timm(purifier: DIPPurifier, images: Tensor) -> None:
    timm = importlib.import_module("timm")
    model = timm.create_model("resnet10t", pretrained=False, num_classes=10).eval()
    data = timm.data.resolve_model_data_config(model)
    check(purifier, Logits(model, mean=data["mean"], std=data["std"]), images, 10)


def test_hugging_face(purifier: DIPPurifier, images: Tensor) -> None:
    transformers = importlib.import_module("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=10,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    check(purifier, Logits(model, mean=(0.5,), std=(0.5,)), images, 10)


def test_robustbench(purifier: DIPPurifier, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its package asks for "autoattack", which PyPI has as "pyautoattack".
    for name in ("", ".state"):
        monkeypatch.setitem(sys.modules, f"autoattack{name}", importlib.import_module(f"pyautoattack{name}"))
    architectures = importlib.import_module("robustbench.model_zoo.architectures.resnet")
    check(purifier, architectures.ResNet18().eval(), images, 10)
