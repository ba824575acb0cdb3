"""Attacks on classifiers.

Those of :mod:`dipdefense.attacks.kurakin` are the paper's, and defence-unaware; :mod:`dipdefense.attacks.adaptive` has
those that know the defence.
"""

from dipdefense.attacks.kurakin import TABLE_2, Attack, AttackName, bi, fgsm, iterations, llci, noise, quantise
from dipdefense.attacks.l2 import pgd_l2

__all__ = ["TABLE_2", "Attack", "AttackName", "bi", "fgsm", "iterations", "llci", "noise", "pgd_l2", "quantise"]
