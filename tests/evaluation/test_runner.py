"""The choice of images, the order of the work, and what a tiny run stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from measuring import CONFIG, CONFIGURATION, TinyImages, timeless, tiny_classifier, tiny_defences, tiny_run
from torch import Tensor, nn

from dipdefense import DIPPurifier, Reconstruction
from dipdefense.evaluation import Store
from dipdefense.evaluation.defences import Defence, Outcome
from dipdefense.evaluation.protocol import attack_named, choose, seeded_order
from dipdefense.seeds import derive_seed


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "outcomes.sqlite") as opened:
        yield opened


def test_images_are_chosen_correctly_classified_and_in_one_order() -> None:
    classifier = tiny_classifier()
    data = TinyImages(classifier, 60)
    few, many = (choose(data, classifier, images=n, batch=7) for n in (5, 30))
    assert many.indices[:5] == few.indices
    assert len(set(many.indices)) == 30
    assert all(index % 3 != 2 for index in many.indices)
    # Every image that was tried and not taken is one that the classifier gets wrong.
    order = [data.ids.index(name) for name in seeded_order(data.ids, 0)]
    assert [index for index in order[: many.tried] if index % 3 != 2] == list(many.indices)
    assert order[many.tried - 1] == many.indices[-1]
    assert choose(data, classifier, images=5, seed=1).indices != few.indices
    assert len(choose(data, classifier, images=None).indices) == 40


def test_classes_are_chosen_first_and_more_classes_keep_those_there_were() -> None:
    classifier = tiny_classifier()
    data = TinyImages(classifier, 60)

    def labels(classes: int, seed: int = 0) -> set[int]:
        chosen = choose(data, classifier, images=None, classes=classes, seed=seed)
        return {data.labels[index] for index in chosen.indices}

    assert labels(1) < labels(3) < labels(5)
    assert all(len(labels(classes)) <= classes for classes in range(1, 6))
    assert len({frozenset(labels(1, seed)) for seed in range(3, 9)}) > 1


def test_too_few_images_or_classes_are_refused_with_their_number() -> None:
    classifier = tiny_classifier()
    data = TinyImages(classifier, 60)
    with pytest.raises(
        ValueError,
        match=r"41 correctly classified images .* of the 60 images .* only 40 are .*--images 40",
    ):
        choose(data, classifier, images=41)
    with pytest.raises(ValueError, match="6 classes were asked for, but the data set has images of 5"):
        choose(data, classifier, images=1, classes=6)
    data.labels = [9] * 60
    with pytest.raises(ValueError, match="only 0 are classified correctly"):
        choose(data, classifier, images=None)
    data.ids[1] = data.ids[0]
    with pytest.raises(ValueError, match="different ids"):
        choose(data, classifier, images=1)


def test_seeds_depend_on_every_part_and_are_the_same_for_ever() -> None:
    assert derive_seed(0, "dip", "n01440764/1.JPEG") == 6227449971908734730
    parts = [
        (0, "dip", "a"),
        (1, "dip", "a"),
        (0, "randomisation", "a"),
        (0, "dip", "b"),
        (0, "di", "pa"),
        ("0di", "pa"),
    ]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_image_goes_through_everything(store: Store) -> None:
    stored = tiny_run(store, images=5, seeds=(0, 7))
    keys = [record.key for record in stored.records]
    assert len(keys) == len(set(keys)) == 5 * 3 * (1 + 2 * (2 + 2))
    assert {record.position for record in stored.records} == set(range(5))
    assert all(record.seconds > 0 and record.status == "ok" for record in stored.records)
    assert all((record.loss is not None) == (record.defence == "dip") for record in stored.records)
    assert all(r.correct for r in stored.records if (r.condition, r.defence) == ("clean", "none"))
    assert {r.seed for r in stored.records if r.defence == "none"} == {0}


def test_a_record_is_what_the_parts_give_by_hand(store: Store) -> None:
    stored = tiny_run(store, images=3, conditions=("fgsm-10",), batch=1)
    classifier = tiny_classifier()
    data = TinyImages(classifier, 60)
    for record in (r for r in stored.records if r.defence == "dip"):
        _, images, labels, _ = dataclasses.astuple(data.stack([data.ids.index(record.image)]))
        attacked = attack_named("fgsm-10")(classifier, images, labels)
        seed = derive_seed(0, "dip", record.image)
        run = DIPPurifier(record.budget, config=CONFIG).reconstruct(attacked, budgets=(record.budget,), seed=seed)
        with torch.no_grad():
            scores = classifier(run.images[0]).softmax(dim=1)[0]
        assert record.label == labels.item()
        assert record.prediction == scores.argmax()
        assert record.confidence == pytest.approx(scores[record.label].item(), rel=1e-4)
        assert record.loss == pytest.approx(run.losses[-1].item(), rel=1e-4)


def test_a_defence_has_the_same_seed_for_an_image_whatever_the_attack(store: Store) -> None:
    seen: dict[str, list[int]] = {}

    def classify(classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]):
        seen.setdefault(str(sorted(seeds)), []).extend(seeds)
        yield Outcome(1, classifier(images), None, ["ok"] * len(images), 0.1)

    tiny_run(store, images=4, batch=4, defences=[Defence("dip", (1,), classify)], seeds=(0, 1))
    assert [len(seeds) for seeds in seen.values()] == [12, 12]
    assert len({seed for seeds in seen.values() for seed in seeds}) == 8


def test_two_attacks_that_come_to_the_same_pixels_are_measured_once(store: Store, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def classify(classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]):
        seen.append(list(seeds))
        for budget in budgets:
            yield Outcome(budget, classifier(images) * budget, None, ["ok"] * len(images), 0.1)

    asked = {"images": 4, "batch": 2, "defences": [Defence("dip", (1, 2), classify)], "seeds": (0, 1)}
    # One step of BI is FGSM; at epsilon 5 they differ.
    together = tiny_run(store, conditions=("fgsm-1", "bi-1", "fgsm-5", "bi-5"), **asked)
    assert len(seen) == 2 * 2 * 3
    with Store(tmp_path / "alone.sqlite") as other:
        for condition in ("fgsm-1", "bi-1", "fgsm-5", "bi-5"):
            alone = tiny_run(other, conditions=(condition,), **asked)
    assert timeless(together) == timeless(alone)
    assert len(seen) == 2 * 2 * 3 + 2 * 2 * 4


def test_the_noise_of_two_images_differs(store: Store) -> None:
    noisy: list[Tensor] = []

    def classify(classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]):
        noisy.append(images)
        yield Outcome(0, classifier(images), None, ["ok"] * len(images), 0.1)

    tiny_run(store, images=2, conditions=("clean", "noise-5"), defences=[Defence("none", (0,), classify, random=False)])
    signs = (noisy[1] - noisy[0]).sign()
    assert 0.4 < (signs[0] == signs[1]).float().mean() < 0.6


def test_an_image_is_attacked_with_the_same_seed_in_any_batch(store: Store, tmp_path: Path) -> None:
    asked = {"images": 4, "conditions": ("noise-10",), "defences": tiny_defences()[:1]}
    with Store(tmp_path / "alone.sqlite") as other:
        runs = tiny_run(store, batch=4, **asked), tiny_run(other, batch=1, **asked)
    together, alone = ([record.confidence for record in run.records] for run in runs)
    assert together == pytest.approx(alone, rel=1e-5)


def test_what_is_done_is_not_done_again(store: Store) -> None:
    first = tiny_run(store)

    def never(*_: object):
        raise AssertionError("this was done already")

    defences = [dataclasses.replace(defence, classify=never) for defence in tiny_defences()]
    again = tiny_run(store, defences=defences)
    assert again == first


def test_more_images_budgets_conditions_and_seeds_extend_a_run(store: Store, tmp_path: Path) -> None:
    tiny_run(store, images=2, conditions=("clean",), defences=tiny_defences((4,)))
    grown = tiny_run(store, images=6, seeds=(0, 3))
    with Store(tmp_path / "fresh.sqlite") as fresh:
        assert timeless(tiny_run(fresh, images=6, seeds=(0, 3))) == timeless(grown)


def test_a_run_of_another_configuration_begins_anew(store: Store) -> None:
    tiny_run(store, images=2)
    other = CONFIGURATION | {"dip": CONFIGURATION["dip"] | {"learning_rate": 0.02}}
    assert len(tiny_run(store, images=1, configuration=other).records) == 3 * 5


@pytest.mark.parametrize("stored", range(6))
def test_an_outcome_is_stored_before_the_next_is_sought(tmp_path: Path, stored: int) -> None:
    """Whenever a run ends, every outcome known before is in the file."""
    path = tmp_path / "outcomes.sqlite"

    def classify(classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]):
        for budget in budgets:
            with Store(path) as other:
                known = len(other.load(other.open_run(CONFIGURATION)).records)
            if known == 2 * stored:
                raise KeyboardInterrupt
            yield Outcome(budget, classifier(images), None, ["ok"] * len(images), 0.1)

    with Store(path) as store, pytest.raises(KeyboardInterrupt):
        tiny_run(store, images=4, batch=2, conditions=("clean",), defences=[Defence("dip", (1, 2, 3), classify)])


def test_a_run_that_ends_in_an_error_leaves_gradients_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(store, "add", full)
    # Held, as a notebook holds its last error.
    with pytest.raises(OSError, match="no space left") as ended:
        tiny_run(store)
    assert ended.traceback
    assert torch.is_grad_enabled()


def test_an_image_whose_output_is_not_finite_is_not_chosen() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 5), torch.nan)

    data = TinyImages(tiny_classifier(), 9)
    data.labels = [0] * 9
    with pytest.raises(ValueError, match="only 0 are classified correctly"):
        choose(data, Broken(), images=1)


def test_output_that_is_not_finite_is_wrong_and_has_no_confidence(store: Store) -> None:
    def classify(classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]):
        scores = classifier(images)
        scores[0] = torch.nan
        losses = torch.tensor([torch.nan, 0.25])
        yield Outcome(2, scores, losses, ["diverged", "ok"], 0.1)

    stored = tiny_run(store, images=2, conditions=("clean",), defences=[Defence("dip", (2,), classify)])
    bad, good = stored.records
    assert (bad.prediction, bad.confidence, bad.loss, bad.status, bad.correct) == (-1, None, None, "diverged", False)
    assert (good.loss, good.status, good.correct) == (0.25, "ok", True)


def test_a_divergence_counts_from_the_budget_where_it_happened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def reconstruct(self: DIPPurifier, images: Tensor, **_: object) -> Reconstruction:
        outputs = torch.stack([images, torch.full_like(images, torch.nan)])
        losses = torch.tensor([[0.3], [0.2], [torch.nan], [torch.nan]])
        return Reconstruction((2, 4), outputs, losses, ("diverged",), "torch")

    monkeypatch.setattr(DIPPurifier, "reconstruct", reconstruct)
    stored = tiny_run(store, images=1, batch=1, conditions=("clean",), defences=tiny_defences()[-1:])
    assert [(r.status, r.correct, r.prediction == -1) for r in stored.records] == [
        ("ok", True, False),
        ("diverged", False, True),
    ]
