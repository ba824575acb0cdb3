"""Figure 5 of Kattamis et al. 2019: the defence's pipeline.

    python benchmarks/figure5.py
    python benchmarks/figure5.py --config paper --budgets 500 750 1000

Shows a real image, its attack and its reconstruction. Without options it uses a packaged image and packaged weights. On
a CPU the setting is reduced, takes minutes, and is named in the picture. A killed run starts again. Writes figure5.png
and figure5.json into --out.
"""

from __future__ import annotations

from dipdefense.paper.figure5 import reproduce

if __name__ == "__main__":
    reproduce(description=__doc__)
