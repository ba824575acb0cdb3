"""Temporary modes: eval mode with gradients, and fp32 products without TF32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Products in whole fp32 on a GPU.

    Otherwise torch may let cuDNN and cuBLAS round the operands to TF32: for convolutions by default, and for matrix
    products where the process or its environment asks for it, as NVIDIA's containers do. Not yet run on a GPU.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@contextlib.contextmanager
def evaluated(classifier: nn.Module) -> Iterator[None]:
    """Eval mode with gradients, even under ``inference_mode``.

    Afterwards every submodule has its own mode again.

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
