"""Eval mode and gradients for a classifier, while its gradients are taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluated(classifier: nn.Module) -> Iterator[None]:
    """Eval mode with gradients, even under ``inference_mode``; every submodule gets its own mode back.

    Example:
        >>> classifier = nn.Dropout()
        >>> with torch.inference_mode(), evaluated(classifier):
        ...     classifier.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        (False, True, False)
        >>> classifier.training
        True
    """
    modes = [(module, module.training) for module in classifier.modules()]
    try:
        classifier.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
