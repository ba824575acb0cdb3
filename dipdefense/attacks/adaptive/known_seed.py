"""The attacker who knows which random sample the defence will use."""

from __future__ import annotations

from dataclasses import dataclass

from dipdefense.attacks.adaptive.bpda import BPDA


@dataclass(frozen=True, kw_only=True)
class KnownSeed(BPDA):
    """BPDA on the very random sample of the defence that will be used.

    An attacker knows it where the defence's seed is fixed or leaked. An evaluation replays that sample, and fresh ones
    beside it. A sample is a batch's: replay the batch that was attacked. Fixed randomness is known to cost a random
    purifier most of its reported robustness (arXiv 2505.22839).

    Attributes:
        known: the sample's seed (:func:`dipdefense.attacks.adaptive.samples.purified`). Every gradient-based attack
            takes it too.
    """

    known: int | None = 0

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        super().__post_init__()
        if self.known is None:
            raise ValueError("known must be the seed of the sample that will be used, got None; BPDA has fresh ones")
