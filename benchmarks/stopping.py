"""Early stopping against fixed budgets: does a rule beat the best budget, and what does it save?

    python benchmarks/stopping.py
    python benchmarks/stopping.py --data cifar10-images.zip --classifier cifar10-cnn --weights cifar10-cnn.pt \
        --config architecture-1 --images 100
    python benchmarks/stopping.py --data imagenet-sample/val --images 8

Each image is fitted once, clean and under each defence-unaware attack, to the last budget. The outputs at every budget
and those that each rule would have stopped at are classified in that fit: a rule that never ends a fit changes no bit
of it. Bare, it takes packaged images and a reduced setting of minutes, which the report names. A run that was killed
resumes from the store when it is called again; called with more images, it adds them.
"""

from __future__ import annotations

from dipdefense.evaluation.early_stopping_report import compare_rules

if __name__ == "__main__":
    compare_rules(description=__doc__)
