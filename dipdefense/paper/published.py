"""The published numbers with their table, row and column, and the paper's claims.

Source: A. Kattamis, T. Adel, A. Weller, "Exploring Properties of the Deep Image Prior", 2019, Tables 1 and 2. Every
number is the top-1 accuracy, in per cent, of ResNet18 on 500 ImageNet images of 200 classes that it classifies
correctly undefended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from dipdefense.config import PAPER_BUDGETS, DIPConfig

CLASSIFIER = "ResNet18"
IMAGES = 500
CLASSES = 200
PIXELS = 224

_COMPARABLE_SIDE = 64

THIS_PAPER = "Kattamis et al. 2019"
QUOTED = "Xie et al. 2017, quoted"
"""By Kattamis et al.; it was measured on another classifier and other images."""


class Published(NamedTuple):
    """One published number.

    Attributes:
        table: 1 or 2.
        row: as printed.
        column: as printed.
        condition: the name that this library's evaluation has for the row.
        defence: likewise for the column: "none", "randomisation" or "dip".
        budget: DIP iterations; 0 for no defence; 1 for randomisation, whose tables have one pass an image.
        percent: top-1 accuracy.
        source: who measured it.
    """

    table: int
    row: str
    column: str
    condition: str
    defence: str
    budget: int
    percent: float
    source: str


_COLUMNS = (
    ("none", 0, ("Without DIP", "No Defence"), THIS_PAPER),
    ("randomisation", 1, ("", "Using randomisation operations (Xie et al., 2017)"), QUOTED),
    ("dip", 500, ("DIP output 500 iterations", "(ours) DIP using 500 it."), THIS_PAPER),
    ("dip", 750, ("DIP output 750 iterations", "(ours) DIP using 750 it."), THIS_PAPER),
    ("dip", 1000, ("DIP output 1000 iterations", "(ours) DIP using 1000 it."), THIS_PAPER),
)

_ROWS = (
    (1, "Clean image dataset", "clean", (100.0, None, 67.5, 75.3, 79.6)),
    (2, "FGSM, ε = 2", "fgsm-2", (21.7, 65.1, 66.2, 73.1, 75.1)),
    (2, "FGSM, ε = 5", "fgsm-5", (3.5, 54.5, 61.2, 69.0, 70.1)),
    (2, "FGSM, ε = 10", "fgsm-10", (2.6, 52.4, 58.4, 62.9, 59.9)),
    (2, "BI, ε = 10", "bi-10", (0.2, None, 61.8, 66.2, 69.2)),
    (2, "LLCI, ε = 10", "llci-10", (1.1, None, 64.2, 73.5, 78.5)),
    (2, "Average", "average", (5.8, 57.3, 62.3, 68.9, 70.6)),
)

PUBLISHED: tuple[Published, ...] = tuple(
    Published(table, row, names[table - 1], condition, defence, budget, percent, source)
    for table, row, condition, percents in _ROWS
    for (defence, budget, names, source), percent in zip(_COLUMNS, percents, strict=True)
    if percent is not None
)


class Claim(NamedTuple):
    """A statement of the paper, or one that a reader would ask for next.

    Attributes:
        statement: in plain words.
        place: the section and table; or that it is not in the paper.
        quote: the paper's words; empty where its numbers alone say it.
    """

    statement: str
    place: str
    quote: str = ""


CLAIMS = {
    "cost": Claim(
        "The defence lowers the accuracy on clean images",
        "section 4, Table 1",
        "using the Deep Image Prior decreases the accuracy of the network on clean images",
    ),
    "gain": Claim(
        "It raises the accuracy under every attack",
        "section 4, Table 2",
        "an increased ability to defend against adversaries",
    ),
    "randomisation": Claim(
        "It is above randomisation, one pass an image, under each attack compared",
        "section 4, Table 2",
        "having a higher accuracy across all three adversaries used in that comparison",
    ),
    "randomisation, other attacks": Claim(
        "It is above randomisation, one pass an image, under the other attacks too",
        "not in the paper, which quotes no numbers for them",
    ),
    "randomisation, 30 passes": Claim(
        "It is above randomisation averaged over 30 passes under every attack",
        "not in the paper, whose tables have one pass an image",
    ),
    "iterations, clean": Claim(
        "More iterations raise the accuracy on clean images",
        "section 4, Table 1",
        "As the number of iterations is increased, the top-1 accuracy increases with it",
    ),
    "iterations, attacked": Claim(
        "More iterations raise the accuracy under every attack but FGSM ε=10",
        "the numbers of Table 2",
    ),
    "iterations, fgsm-10": Claim(
        "Under FGSM ε=10, 1,000 iterations are worse than 750",
        "section 4, Table 2",
        "this is not best for all the adversaries as observed from the FGSM adversary with ε = 10",
    ),
    "average": Claim(
        "Averaged over the attacks it is above randomisation, one pass an image",
        "the numbers of Table 2, whose average of randomisation is over FGSM alone",
    ),
    "iterations, average": Claim(
        "Averaged over the attacks, the most iterations are best",
        "section 4, Table 2",
        "The average accuracy is highest after 1000 iterations",
    ),
    "published cost": Claim("The accuracy on clean images falls by as much as published", "the numbers of Table 1"),
    "published average": Claim("The accuracy averaged over the attacks is the published one", "the numbers of Table 2"),
}
"""The claims of Tables 1 and 2 that one run can decide. FGSM ε=10 rises from 58.4 to 62.9 and falls to 59.9."""

FIGURE_1_CLAIMS = {
    "recovery": Claim(
        "At its peak the true class's confidence is above that of the adversarial image itself, under every attack",
        "section 2, Figure 1",
        "the DIP outputs in the earlier iterations allow the classifier to recover the true class, as evident from the "
        "peaks in the confidence values",
    ),
    "return": Claim(
        "After the peak the confidence falls, under every attack",
        "section 2, Figure 1",
        "the network output converges back to the adversary observed through the decrease in confidence values",
    ),
    "early": Claim(
        "The peak is early, in the first half of the iterations, under every attack",
        "section 2, Figure 1, whose iterations are in no text",
        "the theme is similar: exhibiting peaks at the earlier DIP iterations",
    ),
    "adversaries": Claim(
        "The peak's iteration differs among adversaries of a strength",
        "section 2, Figure 1",
        "The number of iterations at which peak confidence occurs appears to be different among adversaries and also "
        "among adversarial strengths",
    ),
    "strengths": Claim("The peak's iteration differs among the strengths of an adversary", "the same sentence"),
}
"""The claims of Figure 1's text that one run can decide; that of other classifiers ("no qualitative differences were
found" with more accurate ones) needs several."""

FIGURE_3_CLAIMS = {
    "information": Claim(
        "At the end of the fit, robust images have a higher confidence of the true class than non-robust ones",
        "section 5, Figure 3",
        "robust images hold more information about the true class compared to the non-robust images",
    ),
    "trough": Claim(
        "The confidence of non-robust images has a trough before the end",
        "section 5, Figure 3",
        "The non-robust image datasets show a trough before converging to their final classification confidence",
    ),
    "peak": Claim(
        "The confidence of robust images has a peak before the end",
        "section 5, Figure 3",
        "while the robust image datasets shows a peak in confidence",
    ),
    "early": Claim(
        "In the first 200 iterations robust images are ahead of non-robust ones by more than at the end",
        "section 6, on Figure 3",
        "the ability of the Deep Image Prior to select robust image features over non-robust features in its early "
        "iterations",
    ),
    "convergence": Claim(
        "Robust images are fitted faster: their loss is lower, the iterations' mean of its logarithm",
        "section 5, Figure 3",
        "the convergence of the network towards the robust images was faster than the convergence on the non-robust",
    ),
}
"""The claims about Figure 3. The paper states neither its number of images nor its classifier."""

_SENSITIVITY = (
    "while some sensitivity exists, it is not high, with various architecture changes showing little to no changes in "
    "performance"
)
_FAILS = "the network was found to fail when no skip connections were used, or when a very shallow network was used"
ARCHITECTURE_CLAIMS = {
    "no skips": Claim("Without skip connections the defence fails", "section 6", _FAILS),
    "shallow": Claim("With a very shallow network, of one scale here, the defence fails", "section 6", _FAILS),
    "sensitivity": Claim("Most other changes of the network change little", "section 6", _SENSITIVITY),
    "resonance": Claim(
        "The original network is no “resonance”: it does not stand out between a smaller and a larger one",
        "section 6",
        "no evidence was found that can describe this sensitivity as a ‘resonance’, as stated in the original paper",
    ),
}
"""The claims of section 6, which has no numbers and names neither images nor attacks nor most of the changes."""

_ODD = sum(round(10 * p.percent) % 2 for p in PUBLISHED if p.source == THIS_PAPER and p.condition != "average")

NOTES = (
    f"The published numbers are claimed for {CLASSIFIER} on {IMAGES} images of {CLASSES} classes.",
    "The published randomisation column (65.1, 54.5, 52.4) is quoted there from Xie et al. 2017, for another "
    "classifier and other images; its average (57.3) is over the three FGSM rows alone.",
    f"One image of {IMAGES} counts 0.2 %, yet {_ODD} of the paper's own numbers (67.5 and 75.3, for instance) are odd "
    "tenths, which no single count out of it gives.",
    "The paper prints 62.3 as the average after 500 iterations; the mean of the numbers above it is 62.36.",
)

PRINTED_PARAMETERS = 2_217_831
"""The count in Tables 3 and 4 of appendix A.3, for both CIFAR-10 architectures."""


def beside(shape: Sequence[int]) -> tuple[Published, ...]:
    """The published numbers to set beside a measurement on images (C, H, W).

    There are none beside small images: the numbers are of ImageNet at 224×224 and say nothing of other classes on a
    fiftieth of the pixels. The limit is 64 pixels a side, where five scales begin to fit.

    Example:
        >>> len(beside((3, 224, 224))) > 20, beside((3, 32, 32))
        (True, ())
    """
    return PUBLISHED if min(shape[1:]) >= _COMPARABLE_SIDE else ()


def printed_number(
    condition: str, defence: str, budget: int, numbers: Sequence[Published] = PUBLISHED
) -> Published | None:
    """The published number for what was measured, or None if ``numbers`` lacks it.

    Example:
        >>> printed_number("fgsm-5", "dip", 1000).percent
        70.1
    """
    return next((p for p in numbers if (p.condition, p.defence, p.budget) == (condition, defence, budget)), None)


def printed_columns(conditions: Collection[str], numbers: Sequence[Published] = PUBLISHED) -> list[tuple[str, int]]:
    """The published columns that have a number for these conditions.

    Each is (defence, budget); they are in the paper's order.
    """
    wanted = {(p.defence, p.budget) for p in numbers if p.condition in conditions}
    return [(defence, budget) for defence, budget, *_ in _COLUMNS if (defence, budget) in wanted]


def about_parameters(config: DIPConfig, shape: Sequence[int]) -> list[str]:
    """Each network's number of parameters, in words.

    A warning follows where the paper prints another number.

    Args:
        config: of the reconstruction.
        shape: (channels, height, width) of the images.
    """
    channels, height, width = shape
    scales = config.scales_for(height, width)
    count = config.parameter_count(image_channels=channels, scales=scales)
    notes = [f"Each image's network has {count:,} parameters ({scales} scales, {config.channels} channels)."]
    if scales == DIPConfig.architecture_1().scales:
        notes.append(
            f"Tables 3 and 4 of the paper's appendix A.3 print {PRINTED_PARAMETERS:,} parameters for both of its "
            "3-scale networks, which have 1,286,463 and 26,575; the printed count is the 5-scale network's."
        )
    return notes


def reductions(
    config: DIPConfig,
    *,
    images: int,
    budgets: Sequence[int],
    shape: Sequence[int],
    stopping: Mapping[str, Any] | None = None,
) -> list[str]:
    """How a measurement falls short of the paper's or differs from it, in words.

    Empty if it does neither.

    Args:
        config: the network of the reconstruction, with its number of scales.
        images: how many were classified.
        budgets: iterations.
        shape: (channels, height, width) of the images.
        stopping: the settings of a rule that could end a fit early, or None for the paper's fixed budgets.

    Example:
        >>> compact = DIPConfig(scales=5, channels=32)
        >>> reductions(compact, images=500, budgets=(500, 750, 1000), shape=(3, 224, 224))
        ['channels 32 instead of 128']
    """
    found = [f"{images} {'image' if images == 1 else 'images'} instead of {IMAGES}"] if images < IMAGES else []
    if tuple(shape[1:]) != (PIXELS, PIXELS):
        found.append(f"{shape[2]}×{shape[1]} pixels instead of {PIXELS}×{PIXELS}")
    if budgets and max(budgets) < max(PAPER_BUDGETS):
        found.append(f"{max(budgets)} iterations at most instead of {max(PAPER_BUDGETS)}")
    if stopping is not None:
        found.append(f'each image\'s fit ended by the rule "{stopping["rule"]}" instead of at fixed budgets')
    return found + config.differences()
