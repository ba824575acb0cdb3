"""``evaluate``: adaptive attacks on a purifier and classifier of your own."""

from __future__ import annotations

import contextlib
import numbers
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dipdefense
from dipdefense.arguments import callback, choice, integer, several, shown
from dipdefense.attacks.adaptive import Threat
from dipdefense.attacks.adaptive.autoattack import check_autoattack
from dipdefense.attacks.adaptive.checkpoint import fingerprint
from dipdefense.attacks.adaptive.samples import sampled
from dipdefense.attacks.checking import check_attacked, check_labels_below, detached
from dipdefense.checks import check_logits
from dipdefense.datasets import LabelledImages
from dipdefense.evaluation.adaptive.conditions import (
    MOST_SEED,
    STATES,
    Target,
    asked,
    check_conditions,
    conditions,
    judging_seeds,
    purifying,
    rounds,
    with_known_draws,
)
from dipdefense.evaluation.adaptive.levels import LEVELS, Level
from dipdefense.evaluation.adaptive.names import Column, Norm
from dipdefense.evaluation.adaptive.plan import costs, plan, seconds_of
from dipdefense.evaluation.adaptive.probes import probe
from dipdefense.evaluation.adaptive.report import AdaptiveReport
from dipdefense.evaluation.defences import deep_image_prior, undefended
from dipdefense.evaluation.measurement import STORE, complete, joined
from dipdefense.evaluation.protocol import Chosen, content_digest
from dipdefense.evaluation.provenance import circumstances
from dipdefense.evaluation.report import text
from dipdefense.evaluation.runner import Experiment
from dipdefense.evaluation.store import Store
from dipdefense.evaluation.subject import InMemory
from dipdefense.modes import evaluated
from dipdefense.purifier import DIPPurifier

# Images that a defence is probed with, and timed on.
_FEW = 4
_WITHOUT_GRADIENT = {"square", "transfer"}


def evaluate(
    defence: nn.Module,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    level: str | Level = "quick",
    epsilon: float | Sequence[float] = 8,
    norm: Norm = "Linf",
    seed: int = 0,
    batch_size: int = 16,
    folder: Path | str | None = None,
    tell: Callable[[str], object] | None = print,
) -> AdaptiveReport:
    """Attack a defence by attackers who know it, and report the accuracy they leave.

    The undefended classifier is attacked beside it. First the defence is probed, by purifying the first four images
    five times. Then, before any attack, the cost is told: purifications an image and the time that they will take.
    ``quick`` and ``standard`` are reduced attacks, and so the report calls them: an accuracy under them is an upper
    bound, and no robust accuracy. Where a defence that keeps the images' shape has a
    gradient of its own, other than the identity's, the level's BPDA is run with that gradient too ("own gradient").

    Args:
        defence: a purifier, any module from images to images. If it is random, it must take its random numbers from
            torch's default generators, as modules do that are given no seed.
        classifier: from the defence's output to (N, classes) logits. Both are on the images' device; they are put in
            eval mode, and left as they were.
        images: (N, C, H, W) floats in [0, 1], taken as float32; all count, including those that are
            misclassified without an attack.
        labels: (N,) integers, the true classes.
        level: "quick", "standard", "full", or a ``Level`` of your own, with a name of its own.
        epsilon: one or several, in 1/255 for "Linf"; for "L2" the norm itself.
        norm: "Linf" or "L2".
        seed: of the attacks and of the draws that judge them; two seeds share no draw.
        batch_size: images attacked and judged at once.
        folder: where outcomes and attacks' states are kept, of any number of evaluations. One that was killed resumes
            from it when called again with the same arguments, with the same result. Modules are told apart by how
            they print, their weights, and their public attributes that are numbers, strings or tensors. None keeps
            nothing.
        tell: is called with the plan before the first attack; None for silence.

    Raises:
        TypeError, ValueError: an argument is not as described; no attack has been run yet.
        ImportError: the level has an attack of AutoAttack's, which is not installed.

    Example:
        >>> purifier, classifier = nn.Identity(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> images, labels = torch.rand(2, 3, 32, 32), torch.tensor([3, 7])
        >>> report = evaluate(purifier, classifier, images, labels, tell=None)
        >>> report.judged("worst case", ("defence", 1), 8).n
        2
    """
    if not isinstance(defence, nn.Module):
        raise TypeError(f"defence must be a torch.nn.Module from images to images, got {type(defence).__name__}")
    check_attacked(classifier, images, labels)
    if not len(images):
        raise ValueError("images must be at least one, got an empty batch")
    level = _level(level)
    callback("tell", tell, takes="the plan")
    if folder is not None and not isinstance(folder, str | Path):
        raise TypeError(f"folder must be a path or None, got {shown(folder)}")
    check_autoattack(level.attacks)
    epsilons = _epsilons(epsilon, norm)
    seed, batch_size = integer("seed", seed, low=0, high=MOST_SEED), integer("batch_size", batch_size, low=1)
    with evaluated(classifier):
        # Copies that gradients may flow through, in inference mode too.
        images, labels = detached(images), labels.long().clone()
        with torch.no_grad():
            check_labels_below(labels, check_logits(classifier(images[:1]), 1).shape[1])
    data, chosen = _given(images, labels)
    identity = _identity(defence, classifier, images, seed, batch_size)
    with _opened(folder) as (store, states), evaluated(classifier), evaluated(defence):
        # First of all: a defence may draw once, at its first call.
        probes = probe(defence, classifier, images[:_FEW], labels[:_FEW])
        keeps_shape = _keeps_shape(defence, images[:1], seed, level)
        targets = [Target(("none", 0), nn.Identity()), Target(_column(defence), defence, keeps_shape)]
        if not (probes.randomised or probes.samples):
            # All draws of a deterministic defence are one.
            level = replace(level, draws=1, control_draws=1)
        if keeps_shape and probes.own_gradient:
            level = _with_own_gradient(level, random=probes.randomised)
        configuration = identity | {"adaptive": level.settings()}
        draws = judging_seeds(level, seed)
        found = conditions(level, targets, epsilons=epsilons, norm=norm)
        check_conditions(found, classifier, images[:1], labels[:1])
        if tell is not None:
            few = images[:batch_size]
            seconds = {target.name: seconds_of(target, classifier, few) for target in targets}
            again = conditions(level, targets, epsilons=epsilons, norm=norm, repeat=1) if level.repeats else {}
            rows, further = (costs(level, targets, each) for each in (found, again))
            tell(text([plan(level, rows, seconds, images=len(images), again=further)]))
        runs = [
            complete(
                store,
                configuration,
                circumstances(images.device),
                Experiment(
                    data=data,
                    chosen=part,
                    classifier=classifier,
                    conditions=conditions(level, targets, epsilons=epsilons, norm=norm, repeat=repeat, folder=states),
                    defences=[undefended(), purifying(targets[1]), *with_known_draws(level, targets)],
                    seeds=draws,
                    asked=asked(level, draws),
                    device=images.device,
                    batch=batch_size,
                ),
            )
            for repeat, part in rounds(level, chosen)
        ]
    return AdaptiveReport(joined(runs), {targets[1].name: probes})


def _level(given: str | Level) -> Level:
    if isinstance(given, str):
        choice("level", given, LEVELS)
        return LEVELS[given]
    if not isinstance(given, Level):
        raise TypeError(f"level must be one of {', '.join(LEVELS)}, or a Level, got {shown(given)}")
    if given != LEVELS.get(given.name, given):
        raise ValueError(
            f'level has the name "{given.name}" and other attacks than the library\'s; give it another name'
        )
    return given


def _keeps_shape(defence: nn.Module, images: Tensor, seed: int, level: Level) -> bool:
    """Whether the defence's output has the images' shape.

    Raises:
        ValueError: it has not, nor a gradient, and an attack or a control of the level needs one of the two.
    """
    with sampled(seed, images.device):
        # A copy of a copy, since a defence may change its input in place.
        output: Tensor = defence(images.clone().requires_grad_().clone())
    kept = output.shape == images.shape
    if not (kept or output.requires_grad) and {*level.attacks, *level.controls} - _WITHOUT_GRADIENT:
        raise ValueError(
            f"the defence makes images of shape {tuple(output.shape)} from {tuple(images.shape)} and has no gradient, "
            f"which most attacks need; give a Level of {' and '.join(sorted(_WITHOUT_GRADIENT))} alone"
        )
    return kept


def _with_own_gradient(level: Level, *, random: bool) -> Level:
    """The level with its BPDA once more, through the defence's own gradient.

    For a random defence that attack averages over as many samples as the level's BPDA with EOT.
    """
    own = level.attacks.get("bpda")
    if own is None or "own-gradient" in level.attacks:
        return level
    settings = {name: value for name, value in own.items() if name != "backward"}
    if random and "samples" in (eot := level.attacks.get("bpda-eot", {})):
        settings["samples"] = eot["samples"]
    return replace(level, attacks={**level.attacks, "own-gradient": settings})


def _column(defence: nn.Module) -> Column:
    return ("dip", defence.iters) if isinstance(defence, DIPPurifier) else ("defence", 1)


def _epsilons(given: float | Sequence[float], norm: Norm) -> tuple[float, ...]:
    """Ascending and checked, before any work."""
    expected = "one or several numbers: in units of 1/255 from 1 to 255 for Linf, the norm itself for L2"
    values = several("epsilon", [given] if isinstance(given, numbers.Real) else given, expected=expected, most=1000)
    if not values:
        raise ValueError(f"epsilon must be {expected}, got none")
    return tuple(sorted({Threat(epsilon=value, norm=norm).epsilon for value in values}))  # type: ignore[arg-type]


def _given(images: Tensor, labels: Tensor) -> tuple[InMemory, Chosen]:
    """The images of a call as a data set, all of which are chosen."""
    contents = tuple(content_digest(image, label) for image, label in zip(images.cpu(), labels.tolist(), strict=True))
    # With its content, as another call's image at the same place is another image.
    ids = tuple(f"{index}-{content[:8]}" for index, content in enumerate(contents))
    data = InMemory(LabelledImages(ids, images.cpu(), labels.cpu(), ()))
    return data, Chosen(tuple(range(len(ids))), len(ids), contents)


def _identity(defence: nn.Module, classifier: nn.Module, images: Tensor, seed: int, batch_size: int) -> dict[str, Any]:
    """Everything of the call that decides outcomes, beside the attacks.

    The seed is of the attacks too, on whose images the draws of any seed are judged; a batch is attacked as a whole.
    """
    fit: Mapping[str, Any] = {}
    if isinstance(defence, DIPPurifier):
        config = replace(defence.config, scales=defence.config.scales_for(*images.shape[2:]))
        fit = deep_image_prior(
            (defence.iters,), config=config, precision=defence.precision, backend=defence.backend,
            shape=images.shape[1:], batch=min(batch_size, len(images)), device=images.device, stopping=defence.stopping,
        ).settings  # fmt: skip
    return {
        **fit,
        "classifier": type(classifier).__name__,
        "weights": fingerprint(classifier),
        "defence": fingerprint(defence),
        "seed": seed,
        "batch": batch_size,
        "data": "images of a call",
        "input": list(images.shape[1:]),
        "device": images.device.type,
        "dipdefense": dipdefense.__version__,
    }


@contextlib.contextmanager
def _opened(folder: Path | str | None) -> Iterator[tuple[Store, Path | None]]:
    """The store of the outcomes, and the folder of the attacks' states or None."""
    with contextlib.ExitStack() as stack:
        kept = Path(folder if folder is not None else stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(Store(kept / STORE))
        yield store, None if folder is None else kept / STATES
