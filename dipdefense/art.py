"""Both defences as preprocessors of the Adversarial Robustness Toolbox (ART), for its PyTorch estimators."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from torch import Tensor, nn

from dipdefense.checks import Precision, Seed
from dipdefense.config import Backend, DIPConfig
from dipdefense.purifier import DIPPurifier
from dipdefense.randomization import RandomResizePad

Array = npt.NDArray[Any]
ClipValues = Sequence[float | Array] | Array

# ART's attacks leave the range now and then (PGD by rounding, NewtonFool by 6 % of it, ZOO by 28 %) and
# are clipped. Values that are half the range away were not made by an attack: they are on another scale.
_MARGIN = 0.5


class _ImagePreprocessor(PreprocessorPyTorch):  # type: ignore[misc]
    """What both defences share: layout, range and dtype on the way in and out, and checked parameters.

    The module is built anew at every call, so the attributes are the only state, and pickle, copy and
    ``set_params`` need no care of their own.
    """

    params: ClassVar[list[str]] = ["clip_values", "channels_first", "apply_fit", "apply_predict"]

    def __init__(
        self,
        *,
        clip_values: ClipValues,
        channels_first: bool,
        apply_fit: bool,
        apply_predict: bool,
        device_type: str,
    ) -> None:
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict, device_type=device_type)
        self.clip_values = clip_values
        self.channels_first = channels_first

    @abstractmethod
    def _module(self) -> nn.Module:
        """The defence on (N, C, H, W) in [0, 1], built from the attributes; refuses bad ones."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Defend a batch. ART's ``loss_gradient`` and ``class_gradient`` differentiate through this method.

        Args:
            x: (N, C, H, W), or (N, H, W, C) with ``channels_first=False``, of any real dtype, in ``clip_values``.
                Attacks may step out: up to half the range outside is clipped, with the gradient of unclipped
                values.
            y: labels.

        Returns:
            The defended batch, in the layout and range and on the device of ``x``, and ``y`` as it came. Integers
            and float64 become float32, ART's own dtype and most models': some attacks query in float64, which ART
            does not cast. The other floats keep their dtype.

        Raises:
            ValueError: ``x`` is no batch of images, or on another scale than ``clip_values``.
        """
        if x.ndim != 4:
            layout = "channels, height, width" if self.channels_first else "height, width, channels"
            raise ValueError(
                f"Unrecognized input dimension: {type(self).__name__} takes images of shape (batch, {layout}), "
                f"got {tuple(x.shape)}; tabular data, audio and video are not supported"
            )
        if not x.is_floating_point() or x.dtype == torch.float64:
            x = x.float()
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in self.clip_values)
        images = self._clip((x - low) / (high - low), x)
        if self.channels_first:
            images = self._module()(images)
        else:
            images = self._module()(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return images * (high - low) + low, y

    def __call__(self, x: Array, y: Any = None) -> tuple[Array, Any]:
        """Defend an array, without gradients, on the device of ``device_type``; ``y`` comes back as it came."""
        return super().__call__(x)[0], y

    def set_params(self, **params: Any) -> None:
        """Change parameters by name; either all are valid or none is changed.

        Raises:
            ValueError: a name is unknown, or a value is outside its range.
            TypeError: a value is of a wrong type.
        """
        unknown = sorted(set(params) - set(self.params))
        if unknown:
            raise ValueError(f"{type(self).__name__} has no parameters {unknown}; it has {self.params}")
        changed = copy.copy(self)
        for name, value in params.items():
            # ART keeps the two flags behind read-only properties.
            setattr(changed, f"_{name}" if name.startswith("apply_") else name, value)
        changed._check_params()
        self.__dict__.update(changed.__dict__)

    def _check_params(self) -> None:
        """Refuse what no call could work with.

        Raises:
            TypeError, ValueError: saying which parameter, what was expected and what came.
        """
        for name in ("channels_first", "apply_fit", "apply_predict"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        bounds = self.clip_values
        if not isinstance(bounds, (tuple, list, np.ndarray)) or len(bounds) != 2:
            raise ValueError(
                f"clip_values must be the classifier's, a pair (min, max) such as (0, 255), got {bounds!r}"
            )
        low, high = (np.asarray(bound, dtype=float) for bound in bounds)
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ValueError(f"clip_values must be finite with min < max, got {bounds!r}")
        self._module()

    def _clip(self, images: Tensor, x: Tensor) -> Tensor:
        """Clip to [0, 1], or refuse in the caller's units."""
        if images.numel() == 0:
            return images
        low, high = images.detach().aminmax()
        if not (low >= -_MARGIN and high <= 1 + _MARGIN):
            raise ValueError(
                f"x must be finite and lie in clip_values={self.clip_values!r}, got values from "
                f"{x.min():.4g} to {x.max():.4g}; give the classifier and its defence the data's clip_values"
            )
        # A clipped pixel keeps its gradient: without one, an attack could not bring it back.
        return images + (images.clamp(0, 1) - images).detach()

    def __repr__(self) -> str:
        """The settings; ART prints them with the classifier."""
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.params)
        return f"{type(self).__name__}({settings})"


class DIPPreprocessor(_ImagePreprocessor):
    """`DIPPurifier` in front of an ART estimator, by default at prediction and not in training.

    The backward pass is the identity (straight-through, BPDA), so every white-box attack of ART gets a gradient.
    Examples crafted on an undefended classifier are defence-unaware: accuracy on them is not robustness.

    Every query costs a reconstruction. BIM with 10 iterations purifies each image 12 times, 13 times without
    labels, because ART checks its success through the defence as well. ART hands over ``predict``'s whole set at
    once, whatever its own ``batch_size`` says; the one here bounds the memory. For EOT average several calls of
    ``loss_gradient``: rows repeated inside the defence would break ``predict``.

    Args:
        iters: iterations; the paper tests 500, 750 and 1000.
        config: the network and its optimiser; the paper's by default.
        seed: None for fresh networks at every call; an integer for the same ones at every call and image. One
            seed an image works only where every call brings that many images, which few attacks do.
        batch_size: images fitted at once, or "auto" to size it from free memory.
        precision: "fp32", "bf16", or "auto" for bf16 on GPUs that have it.
        backend: "auto", "torch", "cudagraphs" or "triton"; see :func:`dipdefense.reconstruct`.
        clip_values: (min, max) of the data: the classifier's. Numbers, or arrays that broadcast against an image.
        channels_first: (N, C, H, W) if true, (N, H, W, C) otherwise.
        apply_fit: purify in ``fit``.
        apply_predict: purify in ``predict``, ``loss_gradient`` and ``class_gradient``.
        device_type: ART's "gpu" or "cpu", for calls with arrays. Tensors are purified where they are, so inside
            an estimator its device counts.

    Raises:
        TypeError, ValueError: a parameter is outside its range, here and in ``set_params``.

    Example:
        >>> defence = DIPPreprocessor(iters=2, config=DIPConfig.architecture_2(), clip_values=(0, 255))
        >>> purified, _ = defence(np.full((1, 3, 32, 32), 128, dtype=np.uint8))
        >>> purified.shape, purified.dtype
        ((1, 3, 32, 32), dtype('float32'))
    """

    params: ClassVar[list[str]] = [
        "iters",
        "config",
        "seed",
        "batch_size",
        "precision",
        "backend",
        *_ImagePreprocessor.params,
    ]

    def __init__(
        self,
        iters: int = 1000,
        *,
        config: DIPConfig | None = None,
        seed: Seed = None,
        batch_size: int | Literal["auto"] = "auto",
        precision: Precision = "auto",
        backend: Backend = "auto",
        clip_values: ClipValues = (0.0, 1.0),
        channels_first: bool = True,
        apply_fit: bool = False,
        apply_predict: bool = True,
        device_type: str = "gpu",
    ) -> None:
        super().__init__(
            clip_values=clip_values,
            channels_first=channels_first,
            apply_fit=apply_fit,
            apply_predict=apply_predict,
            device_type=device_type,
        )
        self.iters = iters
        self.config = config
        self.seed = seed
        self.batch_size = batch_size
        self.precision = precision
        self.backend = backend
        self._check_params()

    def _module(self) -> DIPPurifier:
        return DIPPurifier(
            self.iters,
            config=self.config,
            seed=self.seed,
            batch_size=self.batch_size,
            precision=self.precision,
            backend=self.backend,
        )

    def estimate_gradient(self, x: Array, grad: Array) -> Array:  # noqa: ARG002
        """The identity, which ART asks for beside NumPy preprocessors; its default would purify once a class."""
        return grad


class RandomizationPreprocessor(_ImagePreprocessor):
    """`RandomResizePad` (Xie et al. 2017) in front of an ART estimator, by default at prediction only.

    The defended images are larger. ART's PyTorch classifier allows that: ``predict``, the gradients and the
    attacks keep to the original size, as long as the model takes the larger one, as networks with global pooling
    do. A model tied to one size (a flattening head, a ViT) raises an error of its own.

    Attacks get the gradient through the draws of the very same call.

    Args:
        seed: None for fresh draws at every call; an integer for the same at every call and image; or one an
            image, where every call brings that many images.
        clip_values: (min, max) of the data: the classifier's. Numbers, or arrays of one value a channel.
        channels_first: (N, C, H, W) if true, (N, H, W, C) otherwise.
        apply_fit: randomise in ``fit``.
        apply_predict: randomise in ``predict``, ``loss_gradient`` and ``class_gradient``.
        device_type: ART's "gpu" or "cpu", for calls with arrays.

    Raises:
        TypeError, ValueError: a parameter is outside its range, here and in ``set_params``.

    Example:
        >>> RandomizationPreprocessor(seed=0)(np.zeros((1, 3, 224, 224), dtype=np.float32))[0].shape
        (1, 3, 248, 248)
    """

    params: ClassVar[list[str]] = ["seed", *_ImagePreprocessor.params]

    def __init__(
        self,
        *,
        seed: Seed = None,
        clip_values: ClipValues = (0.0, 1.0),
        channels_first: bool = True,
        apply_fit: bool = False,
        apply_predict: bool = True,
        device_type: str = "gpu",
    ) -> None:
        super().__init__(
            clip_values=clip_values,
            channels_first=channels_first,
            apply_fit=apply_fit,
            apply_predict=apply_predict,
            device_type=device_type,
        )
        self.seed = seed
        self._check_params()

    def _module(self) -> RandomResizePad:
        return RandomResizePad(seed=self.seed)
