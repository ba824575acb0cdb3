"""Square, an attack without gradients, with the defence in its loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipdefense.attacks.adaptive.autoattack import autoattack
from dipdefense.attacks.adaptive.losses import margin
from dipdefense.attacks.adaptive.samples import derived, sampled
from dipdefense.attacks.adaptive.task import AdaptiveAttack, Task, check_counts

# A margin that no image has.
_UNKNOWN = 1e6


@dataclass(frozen=True, kw_only=True)
class Square(AdaptiveAttack):
    """AutoAttack's Square (Andriushchenko et al. 2020) on the defended model.

    Random squares are kept where the defended model's margin falls. Every query meets a fresh random sample of the
    defence. AutoAttack stops at the first success; here the search goes on to the last query, and the image of the
    least margin is returned, where a margin is the mean over the samples of its query. It needs
    ``pip install dipdefense[attacks]``.

    Attributes:
        queries: squares that are tried; 5,000 in AutoAttack.
        samples: random samples of the defence that a query averages over.
    """

    queries: int = 5000
    samples: int = 1

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        check_counts(queries=self.queries, samples=self.samples)

    def purifications(self) -> int:
        """How often the defence is run on each image."""
        return (self.queries + 1) * self.samples

    def _check(self, task: Task, classes: int) -> None:  # noqa: ARG002
        height, width = task.clean.shape[2:]
        tile = height // 5
        # AutoAttack begins with tiles of a fifth of the height, and its last ones must not lie beyond the border.
        fits = height == width and tile > 0 and (height - 5 * tile) // 2 + height // tile * tile <= height
        if task.ball.threat.norm == "L2" and not fits:
            raise ValueError(
                "for L2, AutoAttack's Square needs images as high as wide, of a side that five tiles fill but for less "
                f'than a tile, such as 32 or 224; got {height}×{width}. Resize them, or use the norm "Linf"'
            )

    def _attack(self, task: Task) -> Tensor:
        # AutoAttack keeps its state to itself, but the state follows from the seed and the answers: an interrupted
        # attack is replayed from the answers that it had.
        answers: list[Tensor] = list(task.progress.load().get("answers", ()))
        asked = 0

        def answer(images: Tensor) -> Tensor:
            nonlocal asked
            if asked == len(answers):
                answers.append(self._answer(task, images, asked))
                task.progress.save({"answers": torch.stack(answers)}, at_once=asked == self.queries)
            asked += 1
            return answers[asked - 1].clone()  # AutoAttack writes into it

        with autoattack("square") as library, sampled(task.seed, task.clean.device):
            attack = _unstopped(
                library, answer, n_queries=self.queries, device=task.clean.device,
                norm=task.ball.threat.norm, eps=task.ball.threat.radius,
            )  # fmt: skip
            attack.init_hyperparam(task.clean)
            adversarial: Tensor = attack.attack_single_run(task.clean, task.labels)[1]
        return adversarial

    def _answer(self, task: Task, images: Tensor, query: int) -> Tensor:
        """(N,) margins of the true over the best wrong classes, averaged over samples."""
        margins = []
        for sample in range(self.samples):
            with sampled(derived(task.seed, query, sample), images.device):
                margins.append(-margin(task.logits(task.defence(images.clone())), task.labels))
        # AutoAttack multiplies by zero what it does not choose, and where a reconstruction diverged nothing is known.
        return torch.stack(margins).mean(dim=0).nan_to_num(_UNKNOWN)


def _unstopped(library: Any, answer: Any, **settings: Any) -> Any:
    """AutoAttack's Square that counts no image as misclassified and attacks them all."""

    class Unstopped(library.SquareAttack):  # type: ignore[misc]
        def margin_and_loss(self, images: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            loss = answer(images)
            return torch.ones_like(loss), loss

    return Unstopped(None, **settings)
