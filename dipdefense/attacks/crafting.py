"""One of ART's attacks on a classifier, with its arguments and result checked.

The adversarial images are clipped to [0, 1], and the classifier is left as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from dipdefense.arguments import integer
from dipdefense.attacks.checking import check_attacked, check_epsilon, check_labels_below, detached
from dipdefense.checks import check_logits
from dipdefense.modes import evaluated

# One float32 rounding of a sum in [0, 1] is 6e-8; the smallest perturbation of an attack is 4e-3.
_ROUNDING = 1e-6


def craft(
    method: Any,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    batch_size: int,
    *,
    targeted: bool = False,
    **settings: Any,
) -> Tensor:
    """The adversarial images of one of ART's attacks.

    Args:
        method: ART's class.
        classifier: as in :func:`dipdefense.attacks.fgsm`, and so are the next four.
        images: (N, C, H, W) floats in [0, 1].
        labels: (N,) integers.
        epsilon: in units of 1/255.
        batch_size: images attacked at once.
        targeted: whether the goal is the class that the classifier deems least likely; otherwise any but the label.
        settings: further arguments of the class.

    Returns:
        (N, C, H, W) float32 in [0, 1] on the images' device.

    Raises:
        TypeError, ValueError: an argument is not as described; no gradient has been taken yet.
        RuntimeError: the attack left [0, 1] or the ε-ball.
    """
    _check(classifier, images, labels, epsilon, batch_size)
    clean = detached(images)
    if len(images) == 0:
        return clean
    with _under_attack(classifier, images.device) as device:
        estimator = _estimator(classifier, clean, device)
        check_labels_below(labels, estimator.nb_classes)
        goals, pixels = labels.cpu().numpy(), clean.cpu().numpy()
        if targeted:
            goals = estimator.predict(pixels, batch_size=batch_size).argmin(axis=1)
        attack = method(estimator, eps=epsilon / 255, targeted=targeted, batch_size=batch_size, **settings)
        adversarial = torch.from_numpy(attack.generate(pixels, goals)).float().to(clean.device)
    _check_result(adversarial, clean, epsilon)
    # ART projects and then adds the image again, which may leave [0, 1] by a rounding.
    return adversarial.clamp(0, 1)


def _check_result(adversarial: Tensor, clean: Tensor, epsilon: float) -> None:
    """Refuse images outside [0, 1] or the ε-ball; NaN fails these comparisons, too.

    Raises:
        RuntimeError: with the range and the distance that were found.
    """
    low, high = (bound.item() for bound in adversarial.aminmax())
    distance = (adversarial - clean).abs().max().item()
    if not (distance <= epsilon / 255 + _ROUNDING and low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise RuntimeError(
            f"the attack was to stay in [0, 1] and within {epsilon}/255 of the images; it went from {low:.6g} to "
            f"{high:.6g} and {distance * 255:.6g}/255 away. This is a defect; do not use its images"
        )


class _Whole(nn.Module):
    """Calls the classifier as a whole.

    ART would run a Sequential's children one by one, past its own forward. The logits are float32, because ART takes
    them through NumPy, which has no bf16.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return check_logits(self.classifier(images), len(images)).float()


@contextlib.contextmanager
def _under_attack(classifier: nn.Module, default: torch.device) -> Iterator[torch.device]:
    """The classifier in eval mode with frozen parameters, and afterwards as it was.

    Yields the device that it is on. ART changes modes, clears the parameters' gradients and then fills them.
    """
    device = next((tensor.device for tensor in [*classifier.parameters(), *classifier.buffers()]), default)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"ART runs on the CPU and on CUDA; move the classifier there, it is on {device}")
    parameters = [(tensor, tensor.requires_grad, tensor.grad) for tensor in classifier.parameters()]
    # ART takes the current CUDA device, not the classifier's.
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    try:
        classifier.requires_grad_(False)
        with on_device, evaluated(classifier):
            yield device
    finally:
        for tensor, requires_grad, gradient in parameters:
            tensor.requires_grad_(requires_grad)
            tensor.grad = gradient


def _estimator(classifier: nn.Module, clean: Tensor, device: torch.device) -> Any:
    """ART's view of the classifier, once it has shown on one image that it is one.

    Raises:
        TypeError, ValueError: the output is no (N, classes) tensor.
    """
    model = _Whole(classifier)
    with torch.no_grad():
        logits = model(clean[:1].to(device))
    return PyTorchClassifier(
        model,
        # The sum: a mean would shrink an image's gradient with the batch, down to where it vanishes and has no sign.
        loss=nn.CrossEntropyLoss(reduction="sum"),
        input_shape=tuple(clean.shape[1:]),
        nb_classes=logits.shape[1],
        clip_values=(0.0, 1.0),
        device_type="cpu" if device.type == "cpu" else "gpu",
    )


def _check(classifier: object, images: Tensor, labels: Tensor, epsilon: float, batch_size: int) -> None:
    check_attacked(classifier, images, labels)
    check_epsilon(epsilon)
    integer("batch_size", batch_size, low=1)
