"""Figure 1 of the paper: the true class's confidence against the iterations, by adversary and strength.

``setting`` has its conditions and command line and measures it, ``claims`` decides the paper's sentences on it,
``plots`` and ``report`` show it.
"""

from dipdefense.paper.figure1.report import reproduce, write_report

__all__ = ["reproduce", "write_report"]
