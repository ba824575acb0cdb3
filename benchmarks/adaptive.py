"""Accuracy under attackers who know the defence.

    python benchmarks/adaptive.py
    python benchmarks/adaptive.py --data IMAGENET/val --classifier resnet18 --images 100 --level standard --epsilon 4 8
    python benchmarks/adaptive.py --level full --dry-run

Measures the undefended classifier, randomisation and the reconstruction. Without options it uses packaged images and
weights, on a CPU at a reduced setting that takes minutes and that every report names. Accuracy under a reduced attack
is never called robust accuracy. A killed run resumes by the same command, even inside an attack; with more images,
attackers or ε, the command adds them. With --report it measures nothing and reports on the attacks that are complete:
of a run that still goes on, or of several with other attackers at other ε.
"""

from __future__ import annotations

from dipdefense.evaluation.adaptive.script import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__)
