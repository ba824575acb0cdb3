"""How any defence is measured, on any classifier and images.

``protocol`` has the conditions, the seeds and the choice of images; ``subject`` opens classifier and images; ``runner``
runs; ``store`` keeps the outcomes; ``statistics`` has cells, intervals and tests; ``report`` the parts of reports. Only
``measure`` needs to be called by an experiment:

Example:
    >>> setting = Setting(images=20)
    >>> subject = open_subject(setting)  # doctest: +SKIP
    >>> measure(setting, subject, conditions={"clean": None}, defences=[undefended()])  # doctest: +SKIP
"""

from dipdefense.evaluation.adaptive.evaluating import evaluate
from dipdefense.evaluation.adaptive.levels import LEVELS, Level
from dipdefense.evaluation.adaptive.report import AdaptiveReport
from dipdefense.evaluation.defences import Defence, deep_image_prior, low_pass, randomisation, undefended
from dipdefense.evaluation.exports import export, read_export
from dipdefense.evaluation.measurement import STORE, measure
from dipdefense.evaluation.provenance import circumstances
from dipdefense.evaluation.records import Record, Run
from dipdefense.evaluation.store import Store, StoreError
from dipdefense.evaluation.subject import ReconstructionSetting, Setting, Subject, open_subject

__all__ = [
    "LEVELS",
    "STORE",
    "AdaptiveReport",
    "Defence",
    "Level",
    "ReconstructionSetting",
    "Record",
    "Run",
    "Setting",
    "Store",
    "StoreError",
    "Subject",
    "circumstances",
    "deep_image_prior",
    "evaluate",
    "export",
    "low_pass",
    "measure",
    "open_subject",
    "randomisation",
    "read_export",
    "undefended",
]
