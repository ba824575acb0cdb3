"""The command ``dipdefense``: purify, classify, attack, evaluate and doctor, a module each.

Modules of subcommands import click alone; torch and the rest load once the arguments were parsed, so that ``--help``
answers at once. Exit codes are in :mod:`dipdefense.cli.ending`.
"""
