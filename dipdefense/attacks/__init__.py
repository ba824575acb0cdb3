"""Attacks on classifiers; those of :mod:`dipdefense.attacks.kurakin` are the paper's, and defence-unaware."""

from dipdefense.attacks.kurakin import TABLE_2, Attack, AttackName, bi, fgsm, iterations, llci, noise, quantise

__all__ = ["TABLE_2", "Attack", "AttackName", "bi", "fgsm", "iterations", "llci", "noise", "quantise"]
