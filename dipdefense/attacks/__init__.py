"""Attackers: :mod:`dipdefense.attacks.kurakin` has the paper's, who do not know of the defence."""

from dipdefense.attacks.kurakin import TABLE_2, Attack, AttackName, bi, fgsm, iterations, llci, noise, quantise

__all__ = ["TABLE_2", "Attack", "AttackName", "bi", "fgsm", "iterations", "llci", "noise", "quantise"]
