"""One attack's task, checked once, and the base class of the attacks.

The base class checks the task, runs the attack and bounds its result.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dipdefense.arguments import integer, shown
from dipdefense.attacks.adaptive.checkpoint import Checkpoint, Progress, fingerprint, identity
from dipdefense.attacks.adaptive.threat import Ball, Threat
from dipdefense.attacks.checking import check_attacked, check_labels_below, detached
from dipdefense.checks import Seed, check_logits, check_seed, resolve_seeds
from dipdefense.modes import evaluated

# More of anything than an attack could do.
_MOST = 1_000_000


class Adaptive(Protocol):
    """An attacker who knows the defence."""

    def purifications(self) -> int:
        """How often the defence is run on each image."""

    def __call__(
        self,
        defence: nn.Module,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        seed: Seed,
        checkpoint: Checkpoint | None = None,
    ) -> Tensor:
        """Adversarial images for the defended classifier ``classifier(defence(images))``.

        Args:
            defence: maps images (N, C, H, W) in [0, 1] to images of any size.
            classifier: maps the defence's output to (N, classes) logits, on the images' device. It is attacked in eval
                mode and left as it was.
            images: (N, C, H, W) floats in [0, 1], the clean ones.
            labels: (N,) integers, the true classes.
            threat: the norm and its bound.
            seed: fixes everything, and then no global generator is touched. An integer attacks the batch as a whole.
                One seed an image attacks each by itself, whatever the batch. None takes a fresh integer from torch's
                default generator.
            checkpoint: where the state is kept, or none. It needs a seed.

        Returns:
            (N, C, H, W) float32 in [0, 1] within the ball, on the images' device. Every image is attacked to the
            end, misclassified or not: success is judged on fresh samples.

        Raises:
            TypeError, ValueError: an argument is not as described; no gradient has been taken yet.
        """

    def check(
        self, defence: nn.Module, classifier: nn.Module, images: Tensor, labels: Tensor, *, threat: Threat
    ) -> None:
        """Refuse what a call would refuse, after one pass of the classifier.

        Raises:
            TypeError, ValueError: this attack cannot be run on the defence, the classifier or the images.
        """


@dataclass(frozen=True)
class Task:
    """An attack that was asked for and checked.

    Attributes:
        defence, classifier: the defended model.
        labels: (N,) int64.
        ball: the clean images, and what may be done to them.
        seed: fixes everything.
        progress: where the state is kept.
    """

    defence: nn.Module
    classifier: nn.Module
    labels: Tensor
    ball: Ball
    seed: int
    progress: Progress

    @property
    def clean(self) -> Tensor:
        """(N, C, H, W) in [0, 1]."""
        return self.ball.clean

    def logits(self, images: Tensor) -> Tensor:
        """The classifier's logits of purified images, float32.

        Raises:
            TypeError, ValueError: they are no (N, classes) tensor.
        """
        return check_logits(self.classifier(images), len(images)).float()


class AdaptiveAttack(abc.ABC):
    """The frame around an attack.

    The arguments are checked before it; after it the images are projected and the classifier's modes are restored.
    """

    @abc.abstractmethod
    def purifications(self) -> int:
        """How often the defence is run on each image."""

    @abc.abstractmethod
    def _attack(self, task: Task) -> Tensor:
        """The adversarial images, for a task that was checked."""

    def _check(self, task: Task, classes: int) -> None:  # noqa: B027 - most attacks run on all of them
        """Refuse a defence or a classifier that this attack cannot be run on."""

    def __call__(
        self,
        defence: nn.Module,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        seed: Seed,
        checkpoint: Checkpoint | None = None,
    ) -> Tensor:
        """See :class:`Adaptive`."""
        if not isinstance(defence, nn.Module):
            raise TypeError(f"defence must be a torch.nn.Module from images to images, got {shown(defence)}")
        check_attacked(classifier, images, labels)
        if not isinstance(threat, Threat):
            raise TypeError(f"threat must be a Threat such as Threat(epsilon=8), got {shown(threat)}")
        if not isinstance(checkpoint, Checkpoint | None):
            raise TypeError(f"checkpoint must be a Checkpoint or None, got {shown(checkpoint)}")
        checked = check_seed(seed)
        if checked is None and checkpoint is not None:
            raise ValueError("seed must be given where a checkpoint is: a fresh one could not be resumed from")
        if isinstance(checked, tuple):
            seeds = resolve_seeds(checked, len(images))
            parts: Sequence[tuple[slice, int, Checkpoint | None]] = [
                (slice(index, index + 1), seed, checkpoint and checkpoint.of_image(index))
                for index, seed in enumerate(seeds)
            ]
        else:
            parts = [(slice(None), resolve_seeds(checked, 1)[0], checkpoint)]
        # Before the first call: a defence may count its calls.
        known = fingerprint(defence) if checkpoint is not None else ""
        with evaluated(classifier):
            adversarial = detached(images)
            for part, own_seed, own_checkpoint in parts if len(images) else ():
                ball = Ball(adversarial[part].clone(), threat)
                # A copy, since labels that were made in inference mode cannot be saved for a backward pass.
                own_labels = labels[part].long().to(images.device).clone()
                progress = Progress(None, "")
                if own_checkpoint is not None:
                    weights = classifier.state_dict().values()
                    key = identity(self, defence, ball.clean, own_labels, threat, own_seed, *weights)
                    progress = Progress(own_checkpoint, key, known, images.device)
                task = Task(defence, classifier, own_labels, ball, own_seed, progress)
                self._refuse(task)
                adversarial[part] = ball.project(self._attack(task))
        return adversarial

    def check(
        self, defence: nn.Module, classifier: nn.Module, images: Tensor, labels: Tensor, *, threat: Threat
    ) -> None:
        """See :class:`Adaptive`."""
        with evaluated(classifier):
            self._refuse(Task(defence, classifier, labels.long(), Ball(images, threat), 0, Progress(None, "")))

    def _refuse(self, task: Task) -> None:
        with torch.no_grad():
            classes = task.logits(task.clean[:1]).shape[1]
        check_labels_below(task.labels, classes)
        self._check(task, classes)


def check_counts(**counts: int) -> None:
    """Refuse hyperparameters that are no positive integers.

    Raises:
        TypeError, ValueError: the message names the first.
    """
    for name, value in counts.items():
        integer(name, value, low=1, high=_MOST)
