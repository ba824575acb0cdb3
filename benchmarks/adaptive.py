"""Attackers who know the defence: accuracy of no defence, randomisation and the reconstruction under each of them.

    python benchmarks/adaptive.py
    python benchmarks/adaptive.py --data IMAGENET/val --classifier resnet18 --images 100 --level standard --epsilon 4 8
    python benchmarks/adaptive.py --level full --dry-run

Bare, it takes packaged images and weights, and on a CPU a setting that is reduced to minutes, which every report
names. A reduced attack is reported as such and never called robust accuracy. A run that was killed resumes, in the
middle of an attack too; called with more images, attackers or ε, it adds them.
"""

from __future__ import annotations

from dipdefense.evaluation.adaptive.script import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__)
