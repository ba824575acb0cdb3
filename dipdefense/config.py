"""Every number of the method, with its unit and the paper's value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dipdefense.arguments import choice, flag, integer, real, several

MIN_SIDE = 32
"""Smallest height and width, in pixels, that any configuration accepts by default."""

Backend = Literal["auto", "torch", "native", "cudagraphs", "triton"]
"""How networks are fitted: torch's operators; on a CPU, kernels compiled at run time; on an NVIDIA GPU, torch's
operators replayed from a CUDA graph, or hand-written kernels."""

Downsampling = Literal["stride", "average", "max", "lanczos2", "lanczos3"]
"""How a scale halves the resolution: its first convolution's stride, or pooling or a Lanczos filter after it."""

Upsampling = Literal["bilinear", "nearest"]
"""How a scale doubles the resolution again."""

Activation = Literal["leaky_relu", "swish", "elu", "none"]
"""The function after every normalisation but the merged one."""

PAPER_BUDGETS = (500, 750, 1000)
"""Iteration budgets of Tables 1 and 2 (Kattamis et al. 2019, appendix A.2)."""

MAX_ITERATIONS = 1_000_000
"""The largest budget that is accepted."""

# Beyond any network that could be fitted. Larger numbers are slips, and would hang or fail far from their cause.
_MAX_SCALES = 16
_MAX_CHANNELS = 8192
_MAX_REDUCTION = 64
_MAX_REAL = 1e30

_KERNEL_SIZES = (3, 5)

_VARIANTS = ("kernel_size", "downsampling", "upsampling", "activation", "pointwise")
# Not stored where they have their defaults: outcomes from before these fields existed have none of them.
_LATER = (*_VARIANTS, "reduction")


@dataclass(frozen=True, kw_only=True)
class DIPConfig:
    """The network, its input and its optimiser; the defaults are the paper's.

    The network is the restoration default of Ulyanov et al. 2017 (section 4 and appendix A.2 of
    Kattamis et al. 2019 call it "the original architecture"). The iteration budget is no part of it: a budget
    says when to stop fitting, not how to fit.

    ``kernel_size`` to ``pointwise`` are variants that the code of Ulyanov et al. also offers (``models/skip.py``).
    Where one of them differs from its default, plain grouped convolutions fit the networks
    (:mod:`dipdefense.engine.variants`), still all images at once, but without the fast path and not with
    ``backend="native"`` or ``"triton"``.

    Attributes:
        scales: times the network halves the resolution. ``None`` follows the image as the paper does: 5 from 64
            pixels a side, 3 below (appendix A.3).
        channels: feature maps of every convolution but the skip branches (128).
        skip_channels: feature maps of each skip branch (4); 0 leaves the skip branches out, which the paper's
            section 6 found to fail.
        input_channels: depth of the fixed noise that is the network's input (32).
        input_scale: that noise is uniform on [0, input_scale) (0.1).
        noise_std: standard deviation of the Gaussian noise added to it afresh at every iteration (1/30); 0 adds none.
        learning_rate: of Adam (0.01).
        betas: Adam's decay rates for the two moments (0.9, 0.999).
        adam_eps: Adam's ε, on the scale of the gradient of one image's mean squared error (1e-8).
        leaky_slope: LeakyReLU's slope for negative values (0.2); 0 makes it ReLU.
        norm_eps: added to the variance in batch normalisation (1e-5).
        kernel_size: 3 or 5, of the convolutions that are not 1×1 (3).
        downsampling: "stride" of the convolution ("stride"); or, after a convolution of stride 1, the "average" or
            "max" of 2×2 pixels, or the filter "lanczos2" or "lanczos3", fixed here but trained in the published code.
        upsampling: "bilinear" without aligned corners, or "nearest" ("bilinear").
        activation: "leaky_relu", "swish", "elu" or "none" ("leaky_relu").
        pointwise: whether a 1×1 convolution, its normalisation and its activation end each scale (True).
        reduction: the networks are fitted to the area average of each image at this fraction of its height and width,
            and their outputs enlarged again by bicubic interpolation; 1 keeps the size (1).

    Raises:
        TypeError, ValueError: a value is of another type, or outside its range; the message names it.

    Example:
        >>> DIPConfig().scales_for(224, 224)
        5
        >>> DIPConfig.architecture_2().parameter_count(image_channels=3, scales=3)
        26575
    """

    scales: int | None = None
    channels: int = 128
    skip_channels: int = 4
    input_channels: int = 32
    input_scale: float = 0.1
    noise_std: float = 1 / 30
    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    leaky_slope: float = 0.2
    norm_eps: float = 1e-5
    kernel_size: int = 3
    downsampling: Downsampling = "stride"
    upsampling: Upsampling = "bilinear"
    activation: Activation = "leaky_relu"
    pointwise: bool = True
    reduction: int = 1

    def __post_init__(self) -> None:
        """Refuse values that no network could be built or fitted with."""
        if self.scales is not None:
            self._set("scales", integer("scales", self.scales, low=1, high=_MAX_SCALES))
        for name, low in {"channels": 1, "skip_channels": 0, "input_channels": 1}.items():
            self._set(name, integer(name, getattr(self, name), low=low, high=_MAX_CHANNELS))
        for name in ("input_scale", "learning_rate", "adam_eps", "norm_eps"):
            expected = f"a positive number of at most {_MAX_REAL:g}"
            self._set(name, real(name, getattr(self, name), expected=expected, holds=lambda x: 0 < x <= _MAX_REAL))
        expected = f"zero or a positive number of at most {_MAX_REAL:g}"
        noise_std = real("noise_std", self.noise_std, expected=expected, holds=lambda x: 0 <= x <= _MAX_REAL)
        self._set("noise_std", noise_std)
        slope = real("leaky_slope", self.leaky_slope, expected="a number in [0, 1)", holds=lambda x: 0 <= x < 1)
        self._set("leaky_slope", slope)
        expected = "two numbers in [0, 1)"
        betas = several("betas", self.betas, expected=expected, most=2)
        if len(betas) != 2:
            raise ValueError(f"betas must be {expected}, got {self.betas!r}")
        self._set("betas", tuple(real("betas", b, expected=expected, holds=lambda x: 0 <= x < 1) for b in betas))
        self._set("kernel_size", integer("kernel_size", self.kernel_size, low=1, expected="3 or 5"))
        if self.kernel_size not in _KERNEL_SIZES:
            raise ValueError(f"kernel_size must be 3 or 5, got {self.kernel_size}")
        choice("downsampling", self.downsampling, get_args(Downsampling))
        choice("upsampling", self.upsampling, get_args(Upsampling))
        choice("activation", self.activation, get_args(Activation))
        flag("pointwise", self.pointwise)
        self._set("reduction", integer("reduction", self.reduction, low=1, high=_MAX_REDUCTION))

    def _set(self, name: str, value: object) -> None:
        """Keep a checked number as Python's own, which JSON can store."""
        object.__setattr__(self, name, value)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DIPConfig:
        """The configuration from the JSON of :meth:`to_json` or ``dataclasses.asdict``.

        A variant that was not stored is the original network's, and a reduction that was not is none. No default
        replaces any other missing number.

        Raises:
            TypeError, ValueError: numbers are missing, unknown or outside their range.
        """
        needed = (field.name for field in dataclasses.fields(cls) if field.name not in _LATER)
        if missing := [name for name in needed if name not in stored]:
            raise ValueError(f"the stored configuration lacks {', '.join(missing)}")
        return cls(**stored)

    def to_json(self) -> dict[str, Any]:
        """The fields as records store them.

        Every number is stored, but variants and the reduction only where they are changed. Outcomes from before these
        fields existed thereby keep their identity.

        Example:
            >>> "upsampling" in DIPConfig().to_json(), DIPConfig(upsampling="nearest").to_json()["upsampling"]
            (False, 'nearest')
        """
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in self._defaults()}

    def variants(self) -> dict[str, Any]:
        """The variants that differ from the original network's.

        The fast path does not have them.

        Example:
            >>> DIPConfig(skip_channels=0, kernel_size=5).variants()
            {'kernel_size': 5}
        """
        return {name: getattr(self, name) for name in _VARIANTS if name not in self._defaults()}

    def differences(self) -> list[str]:
        """The differences from the network and optimiser of the paper's Tables 1 and 2.

        Example:
            >>> DIPConfig(scales=3, channels=16).differences(), DIPConfig.paper().differences()
            (['scales 3 instead of 5', 'channels 16 instead of 128'], [])
        """
        found = []
        for name in (field.name for field in dataclasses.fields(self)):
            used, published = getattr(self, name), getattr(DIPConfig.paper(), name)
            if name == "reduction" and used != published:
                found.append(f"images reduced to 1/{used} of their height and width")
            elif used != published:
                found.append(f"{name.replace('_', ' ')} {used} instead of {published}")
        return found

    def _defaults(self) -> set[str]:
        """The names of the later fields that have their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name for name in _LATER if getattr(self, name) == defaults[name]}

    @classmethod
    def paper(cls) -> DIPConfig:
        """The network of Tables 1 and 2: 5 scales, 128 channels, 2,217,831 parameters.

        The count is that for RGB images.
        """
        return cls(scales=5)

    @classmethod
    def architecture_1(cls) -> DIPConfig:
        """Appendix A.3, Table 3 (CIFAR-10): 3 scales, 128 channels, 1,286,463 parameters.

        The table itself prints 2,217,831, which is the 5-scale network's count.
        """
        return cls(scales=3)

    @classmethod
    def architecture_2(cls) -> DIPConfig:
        """Appendix A.3, Table 4 (CIFAR-10): 3 scales, 16 channels, 26,575 parameters.

        The table itself prints 2,217,831, which is the 5-scale network's count.
        """
        return cls(scales=3, channels=16)

    @classmethod
    def compact(cls) -> DIPConfig:
        """For CPUs: 32 channels instead of 128, and everything else the paper's.

        The paper has no such configuration.
        """
        return cls(channels=32)

    @classmethod
    def half_size(cls) -> DIPConfig:
        """For CPUs: the compact network at half of the image's height and width.

        The paper has no such configuration.
        """
        return cls(channels=32, reduction=2)

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width, in pixels, at which images of this size are fitted.

        Example:
            >>> DIPConfig(reduction=2).fitted_size(224, 225)
            (112, 113)
        """
        return -(-height // self.reduction), -(-width // self.reduction)

    def scales_for(self, height: int, width: int) -> int:
        """The number of scales for images of this size in pixels.

        Each scale pads its feature map by reflection, which takes two rows and columns at least, and three with kernels
        of 5×5.

        Raises:
            ValueError: the image is too small for ``scales``; the message says how many scales fit.
        """
        size = f"{height}×{width}"
        if self.reduction > 1:
            height, width = self.fitted_size(height, width)
            size += f", which reduction={self.reduction} makes {height}×{width}"
        side = min(height, width)
        if self.scales is None and side < MIN_SIDE:
            raise ValueError(
                f"images must be at least {MIN_SIDE} pixels high and wide, got {size}; "
                "enlarge them, or give DIPConfig(scales=...) if you mean it"
            )
        scales = self.scales or (5 if side >= 64 else 3)
        reach = self.kernel_size // 2
        if side <= reach * 2**scales:
            fits = max((side - 1) // reach, 1).bit_length() - 1
            advice = f"at this size at most {fits} scales fit" if fits else "no number of scales fits"
            kernels = f" and kernels of {self.kernel_size}×{self.kernel_size}" if self.kernel_size > 3 else ""
            raise ValueError(
                f"images of {height}×{width} pixels are too small for {scales} scales{kernels}, which need more than "
                f"{reach * 2**scales} pixels a side; {advice}"
            )
        return scales

    def parameter_count(self, *, image_channels: int, scales: int) -> int:
        """Parameters of one image's network, as the literature counts them.

        Biases without effect are included.
        """
        c, s, merged, taps = self.channels, self.skip_channels, self.channels + self.skip_channels, self.kernel_size**2
        total = 0
        for scale in range(scales):
            inputs = self.input_channels if scale == 0 else c
            if s:
                total += inputs * s + s + 2 * s
            total += (taps * inputs * c + c + 2 * c) + (taps * c * c + c + 2 * c)
            total += 2 * merged
            total += taps * merged * c + c + 2 * c
            if self.pointwise:
                total += c * c + c + 2 * c
        return total + c * image_channels + image_channels


CONFIGS = {
    "paper": DIPConfig.paper,
    "compact": DIPConfig.compact,
    "half-size": DIPConfig.half_size,
    "architecture-1": DIPConfig.architecture_1,
    "architecture-2": DIPConfig.architecture_2,
}
"""The configurations by the names that the command line has for them."""
