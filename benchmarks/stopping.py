"""Early stopping against fixed budgets, in accuracy and iterations.

    python benchmarks/stopping.py
    python benchmarks/stopping.py --data cifar10-images.zip --classifier cifar10-cnn --weights cifar10-cnn.pt \
        --config architecture-1 --images 100
    python benchmarks/stopping.py --data imagenet-sample/val --images 8

Does a rule beat the best budget, and what does it save? Each image is fitted once to the last budget, clean and under
each defence-unaware attack. That fit provides the outputs at every budget and those at which each rule would have
stopped: watching a fit without ending it changes no bit of it. Without options it uses packaged images at a reduced
setting that takes minutes and that the report names. A killed run resumes from its store by the same command; with more
images, the command adds them.
"""

from __future__ import annotations

from dipdefense.evaluation.early_stopping_report import compare_rules

if __name__ == "__main__":
    compare_rules(description=__doc__)
