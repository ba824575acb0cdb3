"""How any defence is measured."""

from dipdefense.evaluation.measurement import circumstances, measure, parse_arguments, reproduce
from dipdefense.evaluation.protocol import Setting
from dipdefense.evaluation.store import Run, read_export

__all__ = ["Run", "Setting", "circumstances", "measure", "parse_arguments", "read_export", "reproduce"]
