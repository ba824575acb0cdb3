"""The command ``dipdefense``: purify, classify, attack, evaluate and doctor.

Each subcommand has a module, which imports click alone. Torch and the rest load once the arguments are parsed, so
``--help`` answers at once. The exit codes are in :mod:`dipdefense.cli.ending`.
"""
