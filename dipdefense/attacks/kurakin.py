"""FGSM, BI and LLCI (Kurakin et al. 2016) on ART, and noise as their control.

The noise is random, with the norm of FGSM's perturbations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from art.attacks.evasion import BasicIterativeMethod, FastGradientMethod
from torch import Tensor, nn

from dipdefense.attacks.checking import check_epsilon, detached
from dipdefense.attacks.crafting import craft
from dipdefense.checks import Seed, check_images, resolve_seeds

AttackName = Literal["noise", "FGSM", "BI", "LLCI"]


def iterations(epsilon: float) -> int:
    """Iterations of BI and LLCI: int(min(ε + 4, 1.25 ε)).

    See Kurakin et al. 2016, section 2.2.

    Args:
        epsilon: in units of 1/255.

    Raises:
        TypeError, ValueError: ε is not a number in [1, 255].

    Example:
        >>> [iterations(epsilon) for epsilon in (2, 5, 10)]
        [2, 6, 12]
    """
    check_epsilon(epsilon)
    return int(min(epsilon + 4, 1.25 * epsilon))


def fgsm(classifier: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, batch_size: int = 32) -> Tensor:
    """Fast gradient sign method: one step of ε up the true label's loss.

    See Kurakin et al. 2016, equation 1. The attacker sees ``classifier`` as it is given here. Images crafted on an
    undefended classifier are defence-unaware, and a defence's accuracy on them is not robustness.

    Args:
        classifier: any module from images in [0, 1] to (N, classes) logits, on the CPU or a CUDA device; other
            libraries' models become one with :class:`dipdefense.classifiers.Logits`. It is attacked in eval mode and
            left as it was: modes, parameters and their gradients.
        images: (N, C, H, W) floats in [0, 1].
        labels: (N,) integers, the true classes.
        epsilon: the perturbation's ∞-norm, in units of 1/255.
        batch_size: images attacked at once.

    Returns:
        The adversarial images: (N, C, H, W) float32 in [0, 1] on the device of ``images``, never rounded to 8 bits;
        `quantise` does that.

    Raises:
        TypeError, ValueError: an argument is not as described; no gradient has been taken yet.
        RuntimeError: the attack left [0, 1] or the ε-ball.

    Example:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> images, labels = torch.rand(2, 3, 8, 8), torch.tensor([3, 7])
        >>> adversarial = fgsm(classifier, images, labels, epsilon=2)
        >>> f"{(adversarial - images).abs().max() * 255:.1f}"
        '2.0'
    """
    return craft(FastGradientMethod, classifier, images, labels, epsilon, batch_size)


def bi(classifier: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, batch_size: int = 32) -> Tensor:
    """Basic iterative method: steps of 1/255 up the true label's loss.

    Every step is followed by a projection on the ε-ball and on [0, 1] (Kurakin et al. 2016, section 2.2); `iterations`
    has their number. ART classifies the clean and the adversarial images once more at the end, and its data loaders
    advance torch's default generator, though nothing here is random. Everything else is as in `fgsm`.
    """
    return craft(BasicIterativeMethod, classifier, images, labels, epsilon, batch_size, **_steps(epsilon))


def llci(classifier: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, batch_size: int = 32) -> Tensor:
    """Least-likely class iterative method: `bi` towards the least likely class.

    It descends the loss of the class that ``classifier`` itself deems least likely for the clean image: give the
    undefended one (Kurakin et al. 2016, section 2.3). ``labels`` are checked, and otherwise unused. Everything else is
    as in `bi`.
    """
    return craft(
        BasicIterativeMethod, classifier, images, labels, epsilon, batch_size, targeted=True, **_steps(epsilon)
    )


def noise(images: Tensor, *, epsilon: float, seed: Seed = None) -> Tensor:
    """The control: every pixel moves by ε up or down, at random.

    A gradient's sign moves every pixel by ε too, so random signs have FGSM's norm in every p-norm. A uniform sample
    from the ε-ball would be weaker by √3 in the 2-norm, and would flatter the attack that it is compared with.

    Args:
        images: (N, C, H, W) floats in [0, 1].
        epsilon: in units of 1/255.
        seed: an integer gives every image the same signs; one an image makes them independent; None takes fresh ones
            from torch's default generator.

    Returns:
        (N, C, H, W) float32 in [0, 1] on the device of ``images``.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> noisy = noise(torch.full((1, 3, 8, 8), 0.5), epsilon=10, seed=0)
        >>> ((noisy - 0.5) * 255).round().unique()
        tensor([-10.,  10.])
    """
    check_images(images)
    check_epsilon(epsilon)
    clean = detached(images)
    # On the CPU, so that a seed means the same on every device.
    generators = [torch.Generator().manual_seed(seed) for seed in resolve_seeds(seed, len(images))]
    signs = torch.empty(clean.shape, dtype=torch.float32, device="cpu")
    for sign, generator in zip(signs, generators, strict=True):
        sign.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    return (clean + epsilon / 255 * signs.to(clean.device)).clamp(0, 1)


def quantise(images: Tensor) -> Tensor:
    """Round images (N, C, H, W) in [0, 1] to the 256 values of an 8-bit file.

    Dtype and device stay. Of 8-bit originals and a whole ε the result stays in the ε-ball; otherwise it may leave it by
    half a unit.

    Raises:
        TypeError, ValueError: the images are not as described.

    Example:
        >>> quantise(torch.full((1, 1, 1, 1), 0.5)) * 255
        tensor([[[[128.]]]])
    """
    check_images(images)
    return (images * 255).round() / 255


@dataclass(frozen=True)
class Attack:
    """An attack and its strength: one condition of an experiment.

    It is called on a batch.

    Attributes:
        name: "FGSM", "BI", "LLCI" or "noise".
        epsilon: in units of 1/255.
        rounded: whether the adversarial images are rounded to 8 bits, as a file would have them (see `quantise`).

    Raises:
        TypeError, ValueError: the name is unknown, or ε is not a number in [1, 255].

    Example:
        >>> [str(attack) for attack in TABLE_2]
        ['FGSM ε=2', 'FGSM ε=5', 'FGSM ε=10', 'BI ε=10', 'LLCI ε=10']
    """

    name: AttackName
    epsilon: float
    rounded: bool = False

    def __post_init__(self) -> None:
        """Refuse an attack that could not be run."""
        if self.name not in get_args(AttackName):
            raise ValueError(f"an attack's name must be one of {get_args(AttackName)}, got {self.name!r}")
        check_epsilon(self.epsilon)

    def __str__(self) -> str:
        """Name and strength, as tables print them."""
        return f"{self.name} ε={self.epsilon:g}{' in 8 bits' if self.rounded else ''}"

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 32, seed: Seed = None
    ) -> Tensor:
        """Attack the images, as `fgsm`, `bi`, `llci` or `noise` does.

        `noise` alone uses ``seed``; it ignores ``classifier``, ``labels`` and ``batch_size``.
        """
        if self.name == "noise":
            adversarial = noise(images, epsilon=self.epsilon, seed=seed)
        else:
            attack = {"FGSM": fgsm, "BI": bi, "LLCI": llci}[self.name]
            adversarial = attack(classifier, images, labels, epsilon=self.epsilon, batch_size=batch_size)
        return quantise(adversarial) if self.rounded else adversarial


def _steps(epsilon: float) -> dict[str, Any]:
    return {"eps_step": 1 / 255, "max_iter": iterations(epsilon), "verbose": False}


TABLE_2 = (Attack("FGSM", 2), Attack("FGSM", 5), Attack("FGSM", 10), Attack("BI", 10), Attack("LLCI", 10))
"""The adversaries of Table 2 (Kattamis et al. 2019), in its order."""
