"""Transfer attack: APGD on the classifier alone, replayed on the defended one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dipdefense.attacks.adaptive.autoattack import autoattack
from dipdefense.attacks.adaptive.losses import LossName, margin
from dipdefense.attacks.adaptive.samples import sampled
from dipdefense.attacks.adaptive.task import AdaptiveAttack, Task, check_counts


@dataclass(frozen=True, kw_only=True)
class Transfer(AdaptiveAttack):
    """AutoAttack's APGD on the static classifier (Croce & Hein 2020).

    The losses are the cross-entropy and, for three classes or more, the DLR loss. Of both losses and all restarts the
    image that the static classifier misclassifies by the greatest margin is returned. Croce et al. 2022 found that
    adaptive test-time defences are often weaker against these images than against attacks through the defence. It needs
    ``pip install dipdefense[attacks]``.

    Attributes:
        steps: of APGD, for each loss and restart; 100 is AutoAttack's, 1,000 that of Croce et al. 2022.
        restarts: random starts for each loss.
    """

    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        check_counts(steps=self.steps, restarts=self.restarts)

    def purifications(self) -> int:
        """None: this attacker never runs the defence."""
        return 0

    def _attack(self, task: Task) -> Tensor:
        saved = task.progress.load()
        done, kept = saved.get("done", 0), saved.get("kept", task.clean)
        with torch.no_grad():
            classes, worst = task.logits(task.clean[:1]).shape[1], margin(task.logits(kept), task.labels)
        losses: list[LossName] = ["ce", "dlr"] if classes >= 3 else ["ce"]
        for number, loss in list(enumerate(losses))[done:]:
            candidate = self._apgd(task, loss)
            with torch.no_grad():
                reached = margin(task.logits(candidate), task.labels)
            better = reached > worst
            kept = torch.where(better[:, None, None, None], candidate, kept)
            worst = torch.where(better, reached, worst)
            task.progress.save({"done": number + 1, "kept": kept}, at_once=True)
        assert isinstance(kept, Tensor)
        return kept

    def _apgd(self, task: Task, loss: LossName) -> Tensor:
        with autoattack("autopgd_base") as library, sampled(task.seed, task.clean.device):
            attack = library.APGDAttack(
                task.logits, n_iter=self.steps, n_restarts=self.restarts, loss=loss, device=task.clean.device,
                norm=task.ball.threat.norm, eps=task.ball.threat.radius,
            )  # fmt: skip
            # The iterate of the greatest loss: AutoAttack's other mode leaves an image alone once it is misclassified.
            adversarial: Tensor = attack.perturb(task.clean, task.labels, best_loss=True)
        return adversarial
