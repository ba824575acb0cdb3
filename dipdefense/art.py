"""Both defences as preprocessors of the Adversarial Robustness Toolbox (ART).

They are for ART's PyTorch estimators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from torch import Tensor, nn

from dipdefense.arguments import choice, flag, several, shown
from dipdefense.checks import Precision, Seed
from dipdefense.config import Backend, DIPConfig
from dipdefense.purifier import DIPPurifier
from dipdefense.randomization import RandomResizePad
from dipdefense.stopping import Rule, RuleName

Array = npt.NDArray[Any]
ClipValues = Sequence[float | Array] | Array


@dataclass(kw_only=True, eq=False)
class _ImagePreprocessor(PreprocessorPyTorch):  # type: ignore[misc]
    """The common part of both defences.

    It handles layout, range and dtype on the way in and out, and checks the parameters. The fields are the parameters,
    the constructor's arguments and the only state: the module is built anew at every call. Pickle, copy and
    ``set_params`` therefore need no code of their own.
    """

    clip_values: ClipValues = (0.0, 1.0)
    channels_first: bool = True
    apply_fit: bool = False
    apply_predict: bool = True
    device_type: str = "gpu"

    _defence: ClassVar[type[nn.Module]]

    def __post_init__(self) -> None:
        """Set up ART's part, and refuse what no call could work with.

        Raises:
            TypeError, ValueError: saying which parameter, what was expected and what came.
        """
        for name in ("channels_first", "apply_fit", "apply_predict"):
            flag(name, getattr(self, name))
        choice("device_type", self.device_type, ("gpu", "cpu"))
        _check_clip_values(self.clip_values)
        super().__init__(
            is_fitted=True, apply_fit=self.apply_fit, apply_predict=self.apply_predict, device_type=self.device_type
        )
        self._module()

    @property
    def params(self) -> list[str]:
        """The names of the parameters."""
        return [field.name for field in dataclasses.fields(self)]

    def _module(self) -> nn.Module:
        """The defence on (N, C, H, W) in [0, 1], built from its own parameters.

        Raises:
            TypeError, ValueError: a parameter is outside its range.
        """
        shared = {field.name for field in dataclasses.fields(_ImagePreprocessor)}
        own = {name: getattr(self, name) for name in self.params if name not in shared}
        return self._defence(**own, out_of_range="clip")

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Defend a batch.

        ART's ``loss_gradient`` and ``class_gradient`` differentiate through this method.

        Args:
            x: (N, C, H, W), or (N, H, W, C) with ``channels_first=False``, of any real dtype, in ``clip_values``.
                Attacks may step out: finite values outside are clipped, with the gradient of unclipped ones. A
                warning says where most of them lie outside, as on another scale.
            y: labels.

        Returns:
            The defended batch, in the layout and range and on the device of ``x``, and ``y`` as it came. Integers
            and float64 become float32, ART's own dtype and most models': some attacks query in float64, which ART
            does not cast. The other floats keep their dtype.

        Raises:
            TypeError: ``x`` is complex or boolean.
            ValueError: ``x`` is not a batch of finite images, or ``clip_values`` does not fit it.
        """
        if x.ndim != 4:
            layout = "channels, height, width" if self.channels_first else "height, width, channels"
            raise ValueError(
                f"Unrecognized input dimension: x must be images of shape (batch, {layout}), got {tuple(x.shape)}; "
                "tabular data, audio and video are not supported"
            )
        if x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"x must be images of real numbers, got {x.dtype}")
        if not x.is_floating_point() or x.dtype == torch.float64:
            x = x.float()
        low, high = (self._bound(bound, x) for bound in self.clip_values)
        images = (x - low) / (high - low)
        if self.channels_first:
            images = self._module()(images)
        else:
            images = self._module()(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return images * (high - low) + low, y

    def _bound(self, bound: float | Array, x: Tensor) -> Tensor:
        """A bound that broadcasts against images of any size.

        It is one number, or one a channel on the channels' axis.
        """
        values = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
        if values.numel() == 1:
            return values.reshape(())
        channels = x.shape[1] if self.channels_first else x.shape[3]
        axis = (channels, 1, 1) if self.channels_first else (1, 1, channels)
        if tuple(values.shape) not in ((channels,), axis, (1, *axis)):
            raise ValueError(
                f"clip_values must be numbers or have one value a channel, got shape {np.shape(bound)} for images of "
                f"shape {tuple(x.shape[1:])}"
            )
        return values.reshape(axis)

    def __call__(self, x: Array, y: Any = None) -> tuple[Array, Any]:
        """Defend an array on the device of ``device_type``, without gradients.

        ``y`` comes back as it came.
        """
        return super().__call__(_numbers(x))[0], y

    def set_params(self, **params: Any) -> None:
        """Change parameters by name; either all are valid or none is changed.

        Raises:
            ValueError: a name is unknown, or a value is outside its range.
            TypeError: a value is of a wrong type.
        """
        unknown = sorted(set(params) - set(self.params))
        if unknown:
            raise ValueError(f"{type(self).__name__} has no parameters {unknown}; it has {self.params}")
        self.__dict__.update(dataclasses.replace(self, **params).__dict__)


def _numbers(x: object) -> Array:
    """An array that torch can take.

    Torch knows native byte orders alone, and no negative strides.
    """
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, and tensors that NumPy cannot share
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise TypeError(f"x must be an array of real numbers of at most 64 bits, got {shown(x)}")
    return np.ascontiguousarray(array, dtype=f"{array.dtype.kind}{array.dtype.itemsize}")


def _check_clip_values(bounds: object) -> None:
    expected = "the classifier's, a pair (min, max) such as (0, 255)"
    pair = several("clip_values", bounds, expected=expected, most=2)
    try:
        low, high = (np.asarray(bound, dtype=float) for bound in pair)
        fit = bool(np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all())
    except (TypeError, ValueError, OverflowError):  # not two, no numbers, or shapes that do not go together
        raise ValueError(f"clip_values must be {expected}, got {shown(bounds)}") from None
    if not fit:
        raise ValueError(f"clip_values must be finite with min < max, got {shown(bounds)}")


@dataclass(eq=False)
class DIPPreprocessor(_ImagePreprocessor):
    """`DIPPurifier` in front of an ART estimator, by default at prediction only.

    The backward pass is the identity (straight-through, BPDA), so every white-box attack of ART gets a gradient.
    Examples crafted on an undefended classifier are defence-unaware: accuracy on them is not robustness.

    Every query costs a reconstruction. BIM with 10 iterations purifies each image 12 times, 13 times without
    labels, because ART checks its success through the defence as well. ART hands over ``predict``'s whole set at
    once, regardless of its own ``batch_size``; the one here bounds the memory. For EOT average several calls of
    ``loss_gradient``: rows repeated inside the defence would break ``predict``.

    Args:
        iters: iterations; the paper tests 500, 750 and 1000.
        config: the network and its optimiser; the paper's by default.
        seed: None for fresh networks at every call; an integer for the same ones at every call and image. One
            seed an image works only where every call brings that many images, which few attacks do.
        batch_size: images fitted at once, or "auto" to size it from free memory.
        precision: "fp32", "bf16", or "auto" for bf16 on GPUs that have it and CPUs with
            tiles for it (AMX).
        backend: "auto", "torch", "native", "cudagraphs" or "triton"; see :func:`dipdefense.reconstruct`.
        stopping: "variance", "trend" or a rule of :mod:`dipdefense.stopping`, to end each image's fit by itself before
            ``iters``; None for exactly ``iters`` iterations.
        clip_values: (min, max) of the data: the classifier's. Numbers, or arrays of one value a channel.
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

    iters: int = 1000
    _: KW_ONLY
    config: DIPConfig | None = None
    seed: Seed = None
    batch_size: int | Literal["auto"] = "auto"
    precision: Precision = "auto"
    backend: Backend = "auto"
    stopping: RuleName | Rule | None = None

    _defence = DIPPurifier

    def estimate_gradient(self, x: Array, grad: Array) -> Array:  # noqa: ARG002
        """The identity, which ART asks for beside NumPy preprocessors.

        ART's default would purify once a class.
        """
        return grad


@dataclass(kw_only=True, eq=False)
class RandomizationPreprocessor(_ImagePreprocessor):
    """`RandomResizePad` in front of an ART estimator, by default at prediction only.

    The defence is that of Xie et al. 2017. The defended images are larger. ART's PyTorch classifier allows that:
    ``predict``, the gradients and the attacks keep to the original size, as long as the model takes the larger one, as
    networks with global pooling do. A model tied to one size (a flattening head, a ViT) raises an error of its own.

    Attacks get the gradient through the very sample of the same call.

    Args:
        seed: None for fresh samples at every call; an integer for the same at every call and image; or one an
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

    seed: Seed = None

    _defence = RandomResizePad

    def estimate_gradient(self, x: Array, grad: Array) -> Array:
        """Gradients with respect to ``x``, which ART asks for beside NumPy preprocessors.

        With ``seed=None`` they go through a sample of their own, the same for all classes: ART does not pass on that
        of the forward call.

        Args:
            x: images as in `forward`.
            grad: the gradient with respect to the defended images, with an axis of classes after the first for
                per-class gradients.
        """
        inputs = torch.tensor(_numbers(x), dtype=torch.float32, device=self.device, requires_grad=True)
        defended, _ = self.forward(inputs)
        gradients = torch.tensor(grad, dtype=torch.float32, device=self.device)
        per_class = gradients.ndim == defended.ndim + 1
        rows = gradients.unbind(1) if per_class else (gradients,)
        found = [torch.autograd.grad(defended, inputs, row, retain_graph=True)[0] for row in rows]
        return (torch.stack(found, dim=1) if per_class else found[0]).cpu().numpy()
