"""``evaluate`` in one call: its report, its plan, what it refuses, and resuming."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import CONFIG, timeless
from test_adaptive_sanity import TINY, Honest, Linear, questions
from torch import Tensor, nn

from dipdefense import DIPPurifier
from dipdefense.attacks.adaptive.checkpoint import fingerprint
from dipdefense.evaluation import LEVELS, AdaptiveReport, Level, Store, evaluate
from dipdefense.evaluation.adaptive.conditions import Target, conditions
from dipdefense.evaluation.adaptive.names import title
from dipdefense.evaluation.adaptive.plan import Cost, costs, duration, plan
from dipdefense.evaluation.adaptive.plot import accuracy_by_epsilon
from dipdefense.evaluation.records import Record

BRIEF = Level(
    name="brief",
    attacks={"transfer": {"steps": 2}, "bpda": {"steps": 3}, "known-seed": {"steps": 3}},
    controls={"one-step": {"steps": 1}},
    draws=3,
    control_draws=1,
    repeats=1,
    repeated=2,
)


class Small(nn.Module):
    """A classifier of 32×32 images, which DIP takes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(3 * 8 * 8, 4, generator=generator) / 14)

    def forward(self, images: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(images - 0.5, 8)
        return 40 * pooled.flatten(1) @ self.weight


def asked(count: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    classifier = Small()
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return classifier, images, classifier(images).argmax(dim=1)


def call(defence: nn.Module | None = None, **changes: Any) -> AdaptiveReport:
    arguments: dict[str, Any] = {"level": BRIEF, "epsilon": 16, "tell": None, "batch_size": 2} | changes
    return evaluate(defence or DIPPurifier(2, config=CONFIG), *asked(), **arguments)


def same(report: AdaptiveReport) -> AdaptiveReport:
    return dataclasses.replace(report, run=timeless(report.run))


@pytest.fixture(scope="module")
def report() -> AdaptiveReport:
    return call(epsilon=(8, 16))


def test_the_report_has_every_attack_on_every_defence(report: AdaptiveReport) -> None:
    assert report.columns == [("none", 0), ("dip", 2), ("dip-known-seed", 2)]
    assert report.epsilons == [8, 16]
    for epsilon in report.epsilons:
        for attack in ("transfer", "bpda", "known-seed", "worst case", "one-step"):
            verdict = report.judged(attack, ("dip", 2), epsilon)
            assert verdict is not None
            assert len(verdict.draws[0]) == (1 if attack == "one-step" else 3)
        assert report.judged("bpda", ("none", 0), epsilon) is None
        known = report.judged("known-seed", ("dip-known-seed", 2), epsilon)
        assert known is not None
        assert len(known.draws[0]) == 1
    text = str(report)
    assert 'REDUCED ATTACK, level "brief"' in text
    assert "never called robust accuracy" in text
    assert "DIP 2, known seed" in text
    assert "Several seeds of the attacks" in text
    assert "is randomised and optimises at inference. RobustBench" in " ".join(text.split())
    assert report.markdown().startswith("# Attackers who know the defence")


def test_json_there_and_back(report: AdaptiveReport) -> None:
    again = AdaptiveReport.from_json(report.to_json())
    assert again == report
    assert str(again) == str(report)
    assert again.to_json() == report.to_json()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: told.pop("records"),
        lambda told: told["records"][0].pop("label"),
        lambda told: told["probes"]["dip-2"].pop("looks"),
        lambda told: told.update(sessions=[]),
    ],
)
def test_json_of_something_else_is_refused(report: AdaptiveReport, spoil: Any) -> None:
    told = json.loads(report.to_json())
    spoil(told)
    with pytest.raises(ValueError, match=r"not a report of an adaptive evaluation|missing or unknown"):
        AdaptiveReport.from_json(json.dumps(told))


def test_a_seed_fixes_everything_and_another_gives_another(report: AdaptiveReport) -> None:
    torch.manual_seed(99)
    first = same(call())
    assert first == same(call())
    other = call(seed=1)
    assert [r.confidence for r in other.run.records] != [r.confidence for r in first.run.records]


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 3}], ids=str)
def test_attacks_of_another_seed_or_batch_share_nothing_in_one_folder(change: dict[str, int], tmp_path: Path) -> None:
    """Judging draws overlap, but must not be taken from another attack's images."""
    call(folder=tmp_path)
    assert same(call(folder=tmp_path, **change)) == same(call(**change))


def test_two_seeds_share_no_draw() -> None:
    found = [call(Honest(), seed=seed).run.records for seed in (0, 1, 2)]
    draws = [{(r.condition, r.image, r.confidence) for r in records if r.defence == "defence"} for records in found]
    assert all(draws)
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(draws, 2))


def test_no_generator_and_no_mode_is_touched() -> None:
    defence = DIPPurifier(2, config=CONFIG).train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    call(defence, tell=lambda _: None)
    assert expected == torch.rand(1)
    assert defence.training


class Killed(Honest):
    """Dies at one of its calls."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def forward(self, images: Tensor) -> Tensor:
        self._at -= 1
        if self._at == 0:
            raise KeyboardInterrupt
        return super().forward(images)

    def _get_name(self) -> str:
        return "Honest"


Killed.__qualname__ = "Honest"  # for the store it is one


def test_a_kill_in_the_middle_of_an_attack_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dipdefense.attacks.adaptive.checkpoint.Checkpoint.__init__.__defaults__", (0.0,))
    classifier = Linear()
    images, labels = questions(classifier)
    given: dict[str, Any] = {"level": TINY, "epsilon": 8, "tell": None}
    whole = evaluate(Honest(), classifier, images, labels, **given)
    kills = 0
    for at in (9, 25, 40, 70, 10_000):
        try:
            resumed = evaluate(Killed(at), classifier, images, labels, folder=tmp_path, **given)
        except KeyboardInterrupt:
            kills += 1
    assert kills == 4
    assert same(resumed) == same(whole)


def test_a_kill_before_more_images_mixes_no_two_examples_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Linear()
    images, labels = questions(classifier)
    given: dict[str, Any] = {"level": Level(name="own", attacks={"bpda": {"steps": 3}}, draws=6), "tell": None}
    add, writes = Store.add, itertools.count()

    def killed(store: Store, run: str, records: list[Record]) -> None:
        add(store, run, records)
        # The batch's third draw under attack.
        if records[0].condition.startswith("bpda") and next(writes) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Honest(), classifier, images[:2], labels[:2], folder=tmp_path, **given)
    monkeypatch.setattr(Store, "add", add)
    more = evaluate(Honest(), classifier, images, labels, folder=tmp_path, **given)
    whole = evaluate(Honest(), classifier, images, labels, **given)
    attacked = {r.key: r.confidence for r in whole.run.records if r.condition == "bpda-8@defence-1"}
    assert {r.key: r.confidence for r in more.run.records if r.key in attacked} == attacked
    # What was finished stays.
    few = evaluate(Honest(), classifier, images[:2], labels[:2], folder=tmp_path, **given)
    kept = {r.key: r.confidence for r in more.run.records}
    assert all(kept[r.key] == r.confidence for r in few.run.records)


def test_other_images_in_one_folder_warn_of_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    classifier = Linear()
    images, labels = questions(classifier)
    for part in (slice(0, 2), slice(2, 4), slice(0, 2)):
        evaluate(Honest(), classifier, images[part], labels[part], level=BARE, tell=None, folder=tmp_path)
    assert not recwarn.list


def test_a_purifier_without_a_gradient_is_evaluated() -> None:
    report = call(DIPPurifier(2, config=CONFIG, gradient="none"), level=BARE)
    assert report.judged("bpda", ("dip", 2), 16) is not None
    assert report.probes["dip-2"].zero_gradients == 3


def test_the_report_names_the_network_and_how_it_was_fitted(report: AdaptiveReport) -> None:
    assert {"dip", "precision", "backend"} <= report.run.configuration.keys()
    text = " ".join(str(report).split())
    assert "REDUCED SETTING, NOT THE PAPER'S: 2 iterations at most instead of 500 or more" in text
    assert "backend: torch" in text


def test_the_papers_network_is_not_called_another() -> None:
    config = dataclasses.replace(CONFIG, scales=None)
    text = " ".join(str(call(DIPPurifier(1, config=config), level=BARE)).split())
    assert "scales 3 instead of 5" in text  # as many as images of 32×32 get
    assert "None" not in text


class Halved(nn.Module):
    """Its outputs have half of the height and width, and no gradient; it counts its calls."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            return nn.functional.avg_pool2d(images, 2)


def test_a_defence_without_shape_and_gradient_is_refused_before_any_attack() -> None:
    defence, plans = Halved(), []
    with pytest.raises(ValueError, match=r"makes images of shape \(1, 3, 16, 16\) from \(1, 3, 32, 32\) and has no"):
        call(defence, level=BRIEF, tell=plans.append)
    assert (defence.calls, plans) == (5 + 1, [])  # five probes, and a look at the shape
    alone = Level(name="own", attacks={"transfer": {"steps": 1}}, draws=1)
    assert call(defence, level=alone).judged("transfer", ("defence", 1), 16) is not None


class InPlace(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mul_(0.5)


def test_a_defence_may_change_its_input_in_place() -> None:
    level = Level(name="own", attacks={"bpda": {"steps": 2}, "square": {"queries": 4}}, draws=1)
    told, same_told = (
        [(record.key, record.prediction, record.confidence) for record in call(defence, level=level).run.records]
        for defence in (InPlace(), Dimmed(0.5))
    )
    assert told == same_told


def test_an_attack_that_lacks_attacks_of_the_level_full_is_reduced(report: AdaptiveReport) -> None:
    attacks = report.run.configuration["adaptive"]["attacks"]
    for missing, reduced in (({}, False), ({"square": {}}, True), ({"trajectory": {}}, True)):
        level = {"level": "full", "attacks": {**attacks, **missing}, "controls": {}}
        run = dataclasses.replace(report.run, configuration={**report.run.configuration, "adaptive": level})
        found = dataclasses.replace(report, run=run)
        assert found.reduced is reduced
        assert ("REDUCED ATTACK" in str(found)) is reduced


def test_a_resumed_attack_does_not_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dipdefense.attacks.adaptive.checkpoint.Checkpoint.__init__.__defaults__", (0.0,))
    classifier = Linear()
    images, labels = questions(classifier)
    bare = Level(name="bare", attacks={"bpda": {"steps": 30}}, draws=2)
    given: dict[str, Any] = {"level": bare, "epsilon": 8, "tell": None, "folder": tmp_path}
    killed = Killed(6 + 25)
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed, classifier, images, labels, **given)
    second = Killed(10_000)
    evaluate(second, classifier, images, labels, **given)
    # Five probes and a look at the shape, some ten steps that were left, and the draws that judge them.
    assert 10_000 - second._at < 6 + 15 + 4


def test_every_attack_of_the_levels_runs_on_dip() -> None:
    small = {"steps": 1, "samples": 1, "queries": 2, "iterations": 1, "pairs": 1}
    attacks = {
        name: {setting: small[setting] for setting in settings} for name, settings in LEVELS["full"].attacks.items()
    }
    assert set(LEVELS["standard"].attacks) <= set(attacks)
    report = call(level=Level(name="every", attacks=attacks, draws=1))
    for name in attacks:
        assert report.judged(name, ("dip", 2), 16) is not None, name
        assert title(name) in str(report)


class Recorded(nn.Module):
    """Keeps each call's first random number, and whether the call was for a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[bool, float]] = []

    def forward(self, images: Tensor) -> Tensor:
        self._seen.append((torch.is_grad_enabled(), torch.rand(()).item()))
        return images


def test_the_judging_draws_differ_and_are_none_of_the_attacks() -> None:
    defence, level = Recorded(), Level(name="own", attacks={"bpda": {"steps": 3}}, draws=4)
    call(defence, level=level, tell=lambda _: defence._seen.clear())
    attack, judging = ({number for own, number in defence._seen if own is wanted} for wanted in (True, False))
    # Two batches, each with the start, three steps and four draws.
    assert (len(attack), len(judging)) == (2 * 4, 2 * 4)
    assert attack.isdisjoint(judging)


def test_a_deterministic_defence_is_judged_once() -> None:
    report = call(nn.Identity())
    assert {len(draws) for verdict in report.verdicts for draws in verdict.draws} == {1}
    assert "judged on 1 fresh draws" in " ".join(str(report).split())


def test_weights_and_images_in_bf16_are_taken() -> None:
    class Half(Small):
        def forward(self, images: Tensor) -> Tensor:
            pooled = nn.functional.adaptive_avg_pool2d(images.bfloat16() - 0.5, 8)
            return 40 * pooled.flatten(1) @ self.weight

    _, images, labels = asked()
    bare = Level(name="bare", attacks={"bpda": {"steps": 1}}, draws=1)
    evaluate(nn.Identity(), Half().bfloat16(), images.bfloat16(), labels, level=bare, tell=None)


def test_a_finished_evaluation_is_not_run_again(tmp_path: Path) -> None:
    first = call(Honest(), folder=tmp_path)
    counting = Killed(10_000)
    assert evaluate(counting, *asked(), level=BRIEF, epsilon=16, tell=None, batch_size=2, folder=tmp_path) == first
    # Probes, and the shape of its output.
    assert 10_000 - counting._at == 6


BARE = Level(name="bare", attacks={"bpda": {"steps": 2}}, draws=1)


class Dimmed(nn.Module):
    """Its factor is no weight, and it does not print it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor


@pytest.mark.parametrize("change", ["classifier", "defence", "variant", "attribute"])
def test_one_folder_serves_several_classifiers_and_defences(change: str, tmp_path: Path) -> None:
    classifier, images, labels = asked()
    given: dict[str, Any] = {"level": BARE, "epsilon": 16, "tell": None}
    evaluate(DIPPurifier(2, config=CONFIG), classifier, images, labels, folder=tmp_path, **given)
    defence: nn.Module = DIPPurifier(2, config=CONFIG)
    if change == "classifier":
        classifier.weight.mul_(-0.5)
    elif change == "defence":
        defence = DIPPurifier(2, config=dataclasses.replace(CONFIG, learning_rate=0.1))
    elif change == "variant":
        defence = DIPPurifier(2, config=dataclasses.replace(CONFIG, activation="elu"))
    else:
        evaluate(Dimmed(0.1), classifier, images, labels, folder=tmp_path, **given)
        defence = Dimmed(0.5)
    shared = evaluate(defence, classifier, images, labels, folder=tmp_path, **given)
    assert same(shared) == same(evaluate(defence, classifier, images, labels, folder=tmp_path / "own", **given))


def test_labels_and_counts_may_be_of_any_integer_kind() -> None:
    classifier, images, labels = asked()
    given: dict[str, Any] = {"level": BARE, "epsilon": 16, "tell": None}
    whole = evaluate(nn.Identity(), classifier, images, labels, seed=3, batch_size=2, **given)
    other = evaluate(nn.Identity(), classifier, images, labels.int(), seed=np.int64(3), batch_size=np.int64(2), **given)
    assert same(other) == same(whole)


def test_an_evaluation_runs_in_inference_mode() -> None:
    given: dict[str, Any] = {"level": BARE, "epsilon": 16, "tell": lambda _: None}
    whole = evaluate(nn.Identity(), *asked(), **given)
    classifier, *batch = asked()
    with torch.inference_mode():
        images, labels = (each.clone() for each in batch)
        assert same(evaluate(nn.Identity(), classifier, images, labels, **given)) == same(whole)


def test_the_plan_is_told_before_the_start() -> None:
    told: list[str] = []

    class Stop(Exception):  # noqa: N818
        pass

    def tell(text: str) -> None:
        told.append(text)
        raise Stop

    with pytest.raises(Stop):
        call(tell=tell, epsilon=(8, 16))
    (text,) = told
    words = " ".join(text.split())
    # clean 3 + 1; of each ε: noise 1, transfer 3, BPDA 4 + 3, known seed 4 + 3 + 1, one step 2 + 1.
    assert "48 purifications an image, 3 images" in words
    assert "bpda-8@dip-2" in text
    # Of each ε again: BPDA 4 + 3, known seed 4 + 3 + 1.
    assert (
        "That includes 1 further seeds of the attacks on the first 2 images, 30 purifications an image each." in words
    )


def test_the_time_of_further_seeds_is_in_the_plan() -> None:
    rows, again = [Cost("bpda-8@dip-2", "dip-2", 4, 3)], [Cost("bpda-8@dip-2#1", "dip-2", 4, 3)]
    section = plan(BRIEF, rows, {"dip-2": 1.0}, images=3, again=again)
    assert f"7 purifications an image, 3 images: about {duration(7 * 3 + 7 * 2)} if" in section.paragraphs[0]
    few = plan(BRIEF, rows, {"dip-2": 1.0}, images=1, again=again)
    assert f"about {duration(7 + 7)} if" in few.paragraphs[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (89, "89 s"), (91, "2 min"), (36000, "10 h"), (4.4e7, "12,222 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_levels_from_weak_to_strong() -> None:
    assert list(LEVELS) == ["quick", "standard", "full"]
    steps = [level.attacks["bpda"]["steps"] for level in LEVELS.values()]
    assert steps == sorted(steps)
    assert all(level.draws == 10 for level in LEVELS.values())
    targets = [Target(("none", 0), nn.Identity()), Target(("dip", 500), DIPPurifier(500))]
    counts = [
        sum(cost.attack + cost.judging for cost in costs(level, targets, conditions(level, targets, epsilons=(8,))))
        for level in LEVELS.values()
    ]
    assert counts == [105, 742, 20472], "the documentation and levels name them"


def test_a_report_without_attacks_says_so() -> None:
    text = " ".join(str(call(nn.Identity(), level=Level(name="none", attacks={}, draws=1))).split())
    assert "Attacks: none." in text
    assert "Strongest single attack" not in text


def test_l2_and_a_defence_that_changes_the_size() -> None:
    from dipdefense.randomization import RandomResizePad

    report = call(RandomResizePad(), norm="L2", epsilon=0.5)
    assert report.judged("bpda", ("defence", 1), 0.5) is not None
    assert report.judged("noise", ("defence", 1), 0.5) is None
    assert "Norm: L2, ε is the norm" in " ".join(str(report).split())


def test_the_plot_has_a_panel_a_defence(report: AdaptiveReport) -> None:
    figure = report.plot()
    assert [axes.get_title() for axes in figure.axes] == ["no defence", "DIP 2", "DIP 2, known seed"]
    assert all(line.get_xdata()[0] == 0 for axes in figure.axes for line in axes.lines)


def test_every_panel_of_several_rows_has_numbers_below_it(report: AdaptiveReport) -> None:
    curves = {("dip", budget): {"bpda": [(8.0, report.verdicts[0])]} for budget in range(1, 6)}
    figure = accuracy_by_epsilon(curves, about="five")
    figure.draw_without_rendering()
    assert [bool(axes.xaxis.get_ticklabels()[0].get_text()) for axes in figure.axes] == [True] * 5


def test_a_defence_without_attacks_has_no_panel(report: AdaptiveReport) -> None:
    """As where the clean images alone were judged on the known draw."""
    kept = tuple(record for record in report.run.records if not record.condition.startswith("known-seed"))
    left = dataclasses.replace(report, run=dataclasses.replace(report.run, records=kept))
    assert [axes.get_title() for axes in left.plot().axes] == ["no defence", "DIP 2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": {"brute-force": {}}}, "attacks must be of transfer, .* got brute-force"),
        ({"controls": {"two-steps": {}}}, "controls must be of one-step, .* got two-steps"),
        ({"controls": {"noise": {}}}, "controls must be of one-step, .* got noise"),
        ({"attacks": {"bpda": {"steps": 0}}}, "steps must be"),
        ({"controls": {"one-step": {"steps": 0}}}, "steps must be"),
        ({"draws": 0}, "draws must be"),
        ({"repeats": -1}, "repeats must be"),
        ({"repeats": 1, "repeated": 0}, "repeated must be"),
    ],
)
def test_a_level_that_could_not_be_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BRIEF, **changes)


def wrong() -> Iterator[Any]:
    classifier, images, labels = asked()
    good = (DIPPurifier(2, config=CONFIG), classifier, images, labels)
    yield pytest.param((None, *good[1:]), {}, TypeError, "defence must be a torch.nn.Module", id="defence")
    yield pytest.param((good[0], None, *good[2:]), {}, TypeError, "classifier must be", id="classifier")
    yield pytest.param((*good[:2], images[:0], labels[:0]), {}, ValueError, "at least one", id="no images")
    yield pytest.param((*good[:2], images, labels[:1]), {}, ValueError, "labels must be", id="labels")
    yield pytest.param((*good[:2], images, labels + 4), {}, ValueError, r"labels must lie in \[0, 4\)", id="range")
    yield pytest.param(good, {"level": "hard"}, ValueError, 'level must be "quick", "standard" or "full"', id="level")
    yield pytest.param(
        good, {"epsilon": 0.03}, ValueError, r"epsilon must be a number in \[1, 255\], in units of 1/255", id="8/255"
    )
    yield pytest.param(good, {"epsilon": ()}, ValueError, "epsilon must be one or several", id="no epsilon")
    yield pytest.param(good, {"norm": "L1"}, ValueError, 'norm must be "Linf" or "L2"', id="norm")
    yield pytest.param(good, {"seed": -1}, ValueError, "seed must be", id="seed")
    yield pytest.param(good, {"batch_size": 0}, ValueError, "batch_size must be", id="batch")
    yield pytest.param(good, {"level": None}, TypeError, "level must be one of quick, standard, full", id="no level")
    named = dataclasses.replace(BRIEF, name="full")
    yield pytest.param(good, {"level": named}, ValueError, 'level has the name "full" and other attacks', id="name")
    yield pytest.param(good, {"tell": 3}, TypeError, "tell must be a function of the plan, got", id="tell")


@pytest.mark.parametrize(("arguments", "changes", "kind", "message"), list(wrong()))
def test_bad_arguments_are_refused_before_any_work(
    arguments: tuple[Any, ...], changes: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        evaluate(*arguments, **({"tell": None, "folder": tmp_path / "new"} | changes))
    assert not (tmp_path / "new").exists()


def test_an_attack_that_the_images_do_not_suit_is_refused_before_any_other() -> None:
    classifier, images, labels = asked()
    told: list[str] = []
    level = Level(name="own", attacks={"bpda": {"steps": 1}, "square": {"queries": 2}}, draws=1)
    with pytest.raises(ValueError, match="Square needs images as high as wide"):
        evaluate(
            nn.Identity(), classifier, images[..., :24], labels, level=level, norm="L2", epsilon=1, tell=told.append
        )
    assert not told


def test_a_variant_of_the_network_is_not_unrolled() -> None:
    level = Level(name="own", attacks={"bpda": {"steps": 1}, "unrolled": {"steps": 1, "iterations": 1}}, draws=1)
    variant = DIPPurifier(2, config=dataclasses.replace(CONFIG, activation="elu"))
    targets = [Target(("none", 0), nn.Identity()), Target(("dip", 2), variant)]
    assert list(conditions(level, targets, epsilons=(8,))) == ["clean", "noise-8", "bpda-8@dip-2"]


def test_the_transfer_attack_knows_no_defence_where_none_is_without() -> None:
    level = Level(name="own", attacks={"transfer": {"steps": 1}}, draws=1)
    found = conditions(level, [Target(("dip", 2), DIPPurifier(2, config=CONFIG))], epsilons=(8,))
    assert isinstance(found["transfer-8"].purifier, nn.Identity)


def test_every_attack_that_a_variant_admits_is_not_a_reduced_attack() -> None:
    level = Level(name="full", attacks={"bpda": {"steps": 1}, "unrolled": {"steps": 1, "iterations": 1}}, draws=1)
    asked_for = {"level": level, "epsilon": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LEVELS, "full", level)
        variant = call(DIPPurifier(2, config=dataclasses.replace(CONFIG, activation="elu")), **asked_for)
        assert not variant.reduced
        original = call(**asked_for)
    assert not original.reduced
    without = tuple(record for record in original.run.records if not record.condition.startswith("unrolled"))
    assert dataclasses.replace(original, run=dataclasses.replace(original.run, records=without)).reduced
    assert "scales 2 instead of 5; channels" in " ".join(str(variant).split())
    assert "activation elu instead of leaky_relu" in " ".join(str(variant).split())


def test_a_stopping_rule_is_named_at_the_top() -> None:
    level = Level(name="own", attacks={"bpda": {"steps": 1}}, draws=1)
    text = " ".join(str(call(DIPPurifier(3, config=CONFIG, stopping="trend"), level=level)).split())
    assert 'each image\'s fit ended by the rule "trend" instead of at a fixed budget' in text


def test_the_images_are_called_correctly_classified_where_all_of_them_are(report: AdaptiveReport) -> None:
    assert "Images: 3 that it classifies correctly." in " ".join(str(report).split())
    classifier, images, labels = asked()
    wrong = evaluate(nn.Identity(), classifier, images, (labels + 1) % 4, level=BARE, tell=None)
    assert "Images: 3. Norm" in " ".join(str(wrong).split())


def test_what_decides_no_output_starts_no_other_evaluation(tmp_path: Path) -> None:
    first = call(DIPPurifier(2, config=CONFIG), folder=tmp_path)
    again = call(DIPPurifier(2, config=CONFIG, progress=True, batch_size=1), folder=tmp_path)
    assert again.run.sessions == first.run.sessions, "everything came from the store"
    assert fingerprint(DIPPurifier(2, config=CONFIG)) != fingerprint(DIPPurifier(2, config=CONFIG, gradient="none"))


@pytest.mark.parametrize("epsilon", [np.int64(16), np.float32(16), np.array([16, 8]), np.array([8.0])], ids=repr)
def test_numpys_numbers_are_strengths(epsilon: Any) -> None:
    report = call(nn.Identity(), level=BARE, epsilon=epsilon)
    assert report.epsilons == sorted(np.atleast_1d(epsilon).tolist())


def test_a_level_without_attacks_has_an_empty_plot() -> None:
    report = call(nn.Identity(), level=Level(name="none", attacks={}, draws=1), norm="L2", epsilon=1)
    assert not report.plot().axes


@pytest.mark.parametrize(("norm", "epsilon"), [("L2", 1e-5), ("L2", 1 / 3), ("Linf", 4 / 3)])
def test_an_epsilon_of_many_digits_is_found_in_the_report(norm: str, epsilon: float) -> None:
    report = call(nn.Identity(), level=BARE, norm=norm, epsilon=epsilon)
    assert report.epsilons == [epsilon]
    assert report.judged("bpda", ("defence", 1), epsilon) is not None


def test_a_missing_library_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack.square", None)
    told: list[str] = []
    with pytest.raises(ImportError, match=r'AutoAttack\'s attacks: pip install "dipdefense\[attacks\]"'):
        call(folder=tmp_path / "new", tell=told.append)
    assert not told
    assert not (tmp_path / "new").exists()
    own = Level(name="own", attacks={"bpda": {"steps": 1}}, draws=1)
    assert call(level=own).epsilons == [16]
