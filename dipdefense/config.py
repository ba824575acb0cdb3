"""Every number of the method, with its unit and the paper's value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dipdefense.arguments import integer, real, several

MIN_SIDE = 32
"""Smallest height and width, in pixels, that any configuration accepts by default."""

Backend = Literal["auto", "torch", "native", "cudagraphs", "triton"]
"""How networks are fitted: torch's operators; on a CPU, with kernels compiled at run time between the convolutions; on
an NVIDIA GPU, torch's operators replayed from a CUDA graph, or hand-written kernels."""

PAPER_BUDGETS = (500, 750, 1000)
"""Iteration budgets of Tables 1 and 2 (Kattamis et al. 2019, appendix A.2)."""

MAX_ITERATIONS = 1_000_000
"""The largest budget that is accepted: a thousand times the paper's."""

# Beyond any network that could be fitted; larger numbers are slips, and would end in a hang or far from their cause.
_MAX_SCALES = 16
_MAX_CHANNELS = 8192
_MAX_REAL = 1e30


@dataclass(frozen=True, kw_only=True)
class DIPConfig:
    """The network, its input and its optimiser; the defaults are the paper's.

    The network is the restoration default of Ulyanov et al. 2017 (section 4 and appendix A.2 of
    Kattamis et al. 2019 call it "the original architecture"). The iteration budget is no part of it: a budget
    says when to stop fitting, not how to fit.

    Attributes:
        scales: times the network halves the resolution. ``None`` follows the image as the paper does: 5 from 64
            pixels a side, 3 below (appendix A.3).
        channels: feature maps of every convolution but the skip branches (128).
        skip_channels: feature maps of each skip branch (4); 0 leaves the skip branches out, which the paper's
            section 6 found to fail.
        input_channels: depth of the fixed noise that is the network's input (32).
        input_scale: that noise is uniform on [0, input_scale) (0.1).
        noise_std: standard deviation of the Gaussian noise added to it afresh at every iteration (1/30).
        learning_rate: of Adam (0.01).
        betas: Adam's decay rates for the two moments (0.9, 0.999).
        adam_eps: Adam's ε, on the scale of the gradient of one image's mean squared error (1e-8).
        leaky_slope: LeakyReLU's slope for negative values (0.2).
        norm_eps: added to the variance in batch normalisation (1e-5).

    Raises:
        TypeError, ValueError: something is no number, or outside its range; the message names it.

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

    def __post_init__(self) -> None:
        """Refuse numbers that no network could be built or fitted with."""
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

    def _set(self, name: str, value: object) -> None:
        """Keep a checked number as Python's own: NumPy's are equal to it, but no JSON."""
        object.__setattr__(self, name, value)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DIPConfig:
        """The configuration whose ``dataclasses.asdict`` went through JSON, which makes lists of tuples.

        Raises:
            TypeError, ValueError: numbers are missing, unknown or outside their range. A default is no substitute for
                a number that was not stored.
        """
        if missing := [field.name for field in dataclasses.fields(cls) if field.name not in stored]:
            raise ValueError(f"the stored configuration lacks {', '.join(missing)}")
        return cls(**stored)

    @classmethod
    def paper(cls) -> DIPConfig:
        """The network of Tables 1 and 2: 5 scales, 128 channels, 2,217,831 parameters for RGB images."""
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
        """For CPUs: 32 channels instead of 128, everything else the paper's. Not in the paper."""
        return cls(channels=32)

    def scales_for(self, height: int, width: int) -> int:
        """The number of scales for images of this size in pixels.

        A scale pads its feature map by reflection, so the coarsest one must still have two rows and two columns.

        Raises:
            ValueError: the image is too small for ``scales``; the message says how many scales fit.
        """
        side = min(height, width)
        if self.scales is None:
            if side < MIN_SIDE:
                raise ValueError(
                    f"images must be at least {MIN_SIDE} pixels high and wide, got {height}×{width}; "
                    "enlarge them, or give DIPConfig(scales=...) if you mean it"
                )
            return 5 if side >= 64 else 3
        if side <= 2**self.scales:
            fits = max(side - 1, 1).bit_length() - 1
            advice = f"at this size at most {fits} scales fit" if fits else "no number of scales fits"
            raise ValueError(
                f"images of {height}×{width} pixels are too small for {self.scales} scales, which need more than "
                f"{2**self.scales} pixels a side; {advice}"
            )
        return self.scales

    def parameter_count(self, *, image_channels: int, scales: int) -> int:
        """Parameters of one image's network as the literature counts them, biases without effect included."""
        c, s, merged = self.channels, self.skip_channels, self.channels + self.skip_channels
        total = 0
        for scale in range(scales):
            inputs = self.input_channels if scale == 0 else c
            if s:
                total += inputs * s + s + 2 * s
            total += (9 * inputs * c + c + 2 * c) + (9 * c * c + c + 2 * c)
            total += 2 * merged
            total += (9 * merged * c + c + 2 * c) + (c * c + c + 2 * c)
        return total + c * image_channels + image_channels
