"""The losses that an attack increases, one value an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["ce", "dlr"]

# As in AutoAttack: of logits that are all alike, the ratio is zero.
_TINY = 1e-12


@dataclass(frozen=True)
class Objective:
    """A loss of logits, to be increased: away from the labels or towards targets.

    Attributes:
        labels: (N,) true classes.
        loss: "ce" is the cross-entropy; "dlr" the difference of logits ratio (Croce & Hein 2020, equation 6).
        targets: (N,) classes to move towards, or none. The loss is then minus the targets' cross-entropy, or the
            targeted ratio (equation 7).
    """

    labels: Tensor
    loss: LossName
    targets: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """(N,) values for (N, classes) logits; the more, the better the attack."""
        if self.targets is None:
            return self.untargeted(logits)
        if self.loss == "ce":
            return -F.cross_entropy(logits, self.targets, reduction="none")
        ranked = logits.sort(dim=1).values
        spread = ranked[:, -1] - (ranked[:, -3] + ranked[:, -4]) / 2
        return (_at(logits, self.targets) - _at(logits, self.labels)) / (spread + _TINY)

    def untargeted(self, logits: Tensor) -> Tensor:
        """The loss by which images are compared, in targeted attacks too."""
        if self.loss == "ce":
            return F.cross_entropy(logits, self.labels, reduction="none")
        ranked = logits.sort(dim=1).values
        return margin(logits, self.labels) / (ranked[:, -1] - ranked[:, -3] + _TINY)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) how far the best wrong class is above the true one.

    It is positive where the image is misclassified.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(dim=1) - _at(logits, labels)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)
