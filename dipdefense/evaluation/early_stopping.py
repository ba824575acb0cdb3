"""Rules of early stopping against fixed budgets, judged on one fit of each image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dipdefense.checks import Precision
from dipdefense.config import DIPConfig
from dipdefense.evaluation.defences import Defence, Outcome, clock, deep_image_prior
from dipdefense.reconstruct import Reconstruction, reconstruct
from dipdefense.reduction import enlarged
from dipdefense.stopping import Rule, Trend, Variance, Watch

RULES: dict[str, Rule] = {
    "variance": Variance(),
    "variance, patience 50": Variance(patience=50),
    "trend": Trend(),
    "trend, weight 0.002": Trend(smoothing=0.002),
}
"""The rules with their default settings, one with less patience, and one with the weight of its authors."""


@dataclass(frozen=True, kw_only=True)
class Observed(Rule):
    """Rules that watch one fit and never end it; fixed budgets are judged on it too.

    Attributes:
        rules: by name.
        watches: one a run, added as it begins.
    """

    warm_up: int = 0
    patience: int = 1
    rules: Mapping[str, Rule]
    watches: list[Observation] = field(default_factory=list, compare=False)

    def watch(self, images: Tensor) -> Watch:
        """See :class:`Rule`."""
        self.watches.append(Observation(images, self))
        return self.watches[-1]


class Observation(Watch):
    """The iteration and output at which each rule would have ended a run's fits.

    Attributes:
        iterations: by rule, (N,) int64: the iteration with which the rule would have ended the fit; 0 for never.
        taken: by rule, (N,) int64: the iteration whose output it would have taken; without meaning where it never ends.
        chosen: by rule, (N, C, H, W): that output.
    """

    def __init__(self, images: Tensor, rule: Observed) -> None:
        super().__init__(images, rule)
        self._watches = {name: each.watch(images) for name, each in rule.rules.items()}
        self.iterations = {name: torch.zeros(len(images), dtype=torch.int64) for name in rule.rules}
        self.taken = {name: torch.zeros(len(images), dtype=torch.int64) for name in rule.rules}
        self.chosen = {name: torch.zeros_like(images) for name in rule.rules}

    def _scores(self, iteration: int, outputs: Tensor) -> Tensor:
        for name, watch in self._watches.items():
            ending = watch(iteration, outputs) & (self.iterations[name] == 0)
            self.iterations[name][ending], self.taken[name][ending] = iteration, watch.stopped[ending]
            rows = ending.to(outputs.device)
            self.chosen[name][rows] = watch.outputs[rows]
        # An infinite score is never the least so far, and so never ends a fit.
        return torch.full((len(outputs),), torch.inf, dtype=torch.float64)


class _Fits:
    """The last batch's fits, one for each of its seeds.

    They are kept because the runner hands a batch to every defence in turn.
    """

    def __init__(
        self, budgets: tuple[int, ...], rules: Mapping[str, Rule], config: DIPConfig, precision: Precision
    ) -> None:
        self._budgets, self._rules = budgets, rules
        self._config, self._precision = config, precision
        self._images: Tensor | None = None
        self._found: dict[tuple[int, ...], tuple[Reconstruction, Observation, float]] = {}

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> tuple[Reconstruction, Observation, float]:
        """The run, what the rules made of it, and its seconds."""
        if self._images is not images:
            self._images, self._found = images, {}
        if tuple(seeds) not in self._found:
            observed = Observed(rules=self._rules)
            started = clock(images)
            run = reconstruct(
                images, budgets=self._budgets, config=self._config, seed=seeds, precision=self._precision,
                backend="torch", stopping=observed,
            )  # fmt: skip
            self._found[tuple(seeds)] = run, observed.watches[-1], clock(images) - started
        return self._found[tuple(seeds)]


def one_fit(
    budgets: tuple[int, ...],
    *,
    config: DIPConfig,
    precision: Precision = "auto",
    device: torch.device | str = "cpu",
    rules: Mapping[str, Rule] = RULES,
) -> list[Defence]:
    """The reconstruction at fixed budgets, and one defence a rule, all from one fit.

    Each is billed its share of the fit's seconds by iterations. A rule's defence has the last budget. Records of a rule
    have the iterations of each image's fit; one that the rule did not end has the last output, as a run with that rule
    would.

    Args:
        budgets: iterations, ascending; a rule ends a fit at the last one at the latest.
        config: with its number of scales.
        precision: "auto", "fp32" or "bf16".
        device: where it will run.
        rules: by name.
    """
    fixed = deep_image_prior(budgets, config=config, precision=precision, backend="torch", device=device)
    fits = _Fits(budgets, rules, config, precision)
    last = budgets[-1]

    def at_budgets(
        classifier: nn.Module, images: Tensor, asked: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[Outcome]:
        run, _, seconds = fits(images, seeds)
        for budget in asked:
            part = run.at(budget)
            scores = classifier(part.images[0])
            yield Outcome(budget, scores, part.final_losses, part.status, seconds * budget / last)

    def by(rule: str) -> Defence:
        def stopped(classifier: nn.Module, images: Tensor, _: Sequence[int], seeds: Sequence[int]) -> Iterator[Outcome]:
            run, observation, seconds = fits(images, seeds)
            ended, chosen = observation.iterations[rule] > 0, observation.chosen[rule]
            if config.reduction > 1:
                chosen = enlarged(chosen, images.shape[2:])
            rows = ended.to(images.device)[:, None, None, None]
            output = torch.where(rows, chosen.to(images.dtype), run.images[-1])
            taken = torch.where(ended, observation.taken[rule], last).to(run.losses.device)
            losses = run.losses.gather(0, taken[None] - 1)[0]
            iterations = torch.where(ended, observation.iterations[rule], last).tolist()
            # What the fit did after the rule had ended it is not the rule's.
            status = ["ok" if early else own for early, own in zip(ended.tolist(), run.status, strict=True)]
            yield Outcome(
                last, classifier(output), losses, status, seconds * sum(iterations) / len(images) / last, iterations
            )

        return Defence(rule, (last,), stopped, family="dip")

    told = {"rules": {name: rule.settings for name, rule in rules.items()}}
    whole = dataclasses.replace(fixed, classify=at_budgets, settings={**fixed.settings, **told})
    return [whole, *(by(name) for name in rules)]
