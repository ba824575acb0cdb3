"""The paper's tables and figures, an item a module, on :mod:`dipdefense.evaluation`; its printed numbers and claims."""
