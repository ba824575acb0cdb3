"""Section 6: variants, command line, a measurement end to end, claims and report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from measuring import CIRCUMSTANCES, CONFIGURATION, record, tiny_subject

from dipdefense import DIPConfig
from dipdefense.evaluation import STORE, Run, Store
from dipdefense.paper.architecture import (
    BUDGETS,
    ORIGINAL,
    VARIANTS,
    ArchitectureSetting,
    measure_variants,
    networks,
    parse_arguments,
    reduced,
)
from dipdefense.paper.architecture_claims import findings
from dipdefense.paper.architecture_outcomes import contrast, neighbours, outcomes
from dipdefense.paper.architecture_report import as_csv, as_markdown, read_runs, write_report
from dipdefense.paper.claims import CONFIRMED, CONTRADICTED, UNDECIDED
from dipdefense.paper.labels import network
from dipdefense.paper.published import ARCHITECTURE_CLAIMS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SMALL, LARGE = (3, 32, 32), (3, 224, 224)
TINY = DIPConfig(scales=2, channels=4, skip_channels=2, input_channels=4)


def test_every_variant_changes_one_thing_of_the_original() -> None:
    for config, shape in ((DIPConfig.architecture_1(), SMALL), (DIPConfig.compact(), LARGE)):
        found = networks(config, shape)
        assert next(iter(found)) == ORIGINAL
        original = dataclasses.asdict(found.pop(ORIGINAL))
        for name, varied in found.items():
            assert sum(value != original[field] for field, value in dataclasses.asdict(varied).items()) == 1, name
        assert {one.skip_channels for one in found.values()} == {0, 4, 16, 128}
        assert len(set(found.values())) == len(found)


def test_depths_that_are_the_originals_or_do_not_fit_are_left_out() -> None:
    depths = {name for name in networks(DIPConfig.architecture_1(), SMALL) if name.endswith(("-scale", "-scales"))}
    assert depths == {"1-scale", "2-scales", "4-scales"}
    depths = {name for name in networks(DIPConfig.paper(), LARGE) if name.endswith(("-scale", "-scales"))}
    assert depths == {"1-scale", "2-scales", "3-scales", "4-scales", "6-scales"}
    with pytest.raises(ValueError, match="the variant 6-scales: images of 32×32 pixels are too small for 6 scales"):
        networks(DIPConfig.architecture_1(), SMALL, names=("no-skips", "6-scales"))


def test_a_backend_without_kernels_for_a_variant_leaves_it_out_or_refuses_it_by_name() -> None:
    found = networks(DIPConfig.architecture_1(), SMALL, backend="triton")
    assert {"no-skips", "1-scale", "relu", "no-noise"} < found.keys()
    assert not {"nearest", "swish", "kernel-5", "lanczos", "no-pointwise"} & found.keys()
    with pytest.raises(ValueError, match=r'the variant nearest: backend="triton" has no kernels for DIPConfig\(upsamp'):
        networks(DIPConfig.architecture_1(), SMALL, names=("nearest",), backend="triton")


def test_a_reduced_setting_says_what_it_reduces() -> None:
    whole = networks(DIPConfig.paper(), LARGE)
    assert reduced(whole, images=500, budgets=BUDGETS, shape=LARGE) == ""
    few = networks(DIPConfig.compact(), LARGE, names=("no-skips",))
    told = reduced(few, images=2, budgets=(50, 300), shape=LARGE)
    assert told.startswith("REDUCED SETTING, NOT THE PAPER'S: 2 images instead of 500; 300 iterations at most instead")
    assert told.endswith(f"channels 32 instead of 128; 2 networks of {len(whole)}.")


def test_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = parse_arguments(description="", arguments=["--device", "cpu", "--out", str(tmp_path)])
    assert (bare.variants, bare.images, bare.budgets[-1]) == ((ORIGINAL, "no-skips", "1-scale"), 2, 300)
    assert bare.conditions == ("clean", "fgsm-5")
    given = [
        "--device",
        "cpu",
        "--data",
        str(tmp_path),
        "--config",
        "architecture-1",
        "--images",
        "50",
        "--batch",
        "10",
    ]
    more = parse_arguments(description="", arguments=[*given, "--conditions", "bi-10", "clean", "--seed", "4", "5"])
    assert (more.variants, more.images, more.batch, more.seeds) == (None, 50, 10, (4, 5))
    assert more.conditions == ("clean", "bi-10")
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(description="", arguments=["--variants", "huge"])
    assert exit_.value.code == 2
    assert "invalid choice: 'huge'" in capsys.readouterr().err


def test_a_measurement_end_to_end_resumes_from_its_store_and_from_its_exports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    setting = ArchitectureSetting(
        config=TINY, variants=("no-skips", "nearest"), budgets=(1, 2), batch=2, precision="fp32",
        conditions=("clean", "fgsm-10"), out=tmp_path, progress=False,
    )  # fmt: skip
    runs = measure_variants(setting, tiny_subject())
    told = capsys.readouterr().err
    assert "5 images instead of 500" in told
    assert "3 of 3: nearest upsampling" in told
    assert list(runs) == [ORIGINAL, "no-skips", "nearest"]
    assert [{r.defence for r in run.records} for run in runs.values()] == [{"none", "dip"}, {"dip"}, {"dip"}]
    assert network(runs["nearest"]) == dataclasses.replace(TINY, upsampling="nearest")
    files = write_report(runs, folder=tmp_path)
    assert all(file.stat().st_size > 500 for file in files)
    assert as_markdown(outcomes(read_runs(tmp_path))) == (tmp_path / "architecture.md").read_text()

    def seconds(of: Mapping[str, Run]) -> list[float]:
        return [r.seconds for run in of.values() for r in run.records]

    assert seconds(measure_variants(setting, tiny_subject())) == seconds(runs)
    (tmp_path / STORE).unlink()
    assert seconds(measure_variants(setting, tiny_subject())) == seconds(runs)
    with Store(tmp_path / STORE) as store:
        assert len(store.done(store.open_run(runs["nearest"].configuration))) == 5 * 2 * 2


def curves(
    shares: Mapping[str, float], *, n: int = 50, budgets: Sequence[int] = (100, 200, 300), best: int = 200
) -> dict[str, Run]:
    """Runs with each variant right on its first images, most confident at ``best``."""
    config = networks(DIPConfig.architecture_1(), SMALL)
    runs = {}
    for name, share in shares.items():
        records = [
            record(
                str(image), condition=condition, budget=budget, position=image, session=1,
                prediction=3 if image < share * n else 4,
                confidence=(0.9 if image < share * n else 0.2) - (0.1 if budget != best else 0),
            )
            for condition in ("clean", "fgsm-5")
            for budget in budgets
            for image in range(n)
        ]  # fmt: skip
        configuration = CONFIGURATION | {"dip": config[name].to_json(), "input": list(SMALL)}
        runs[name] = Run(json.loads(json.dumps(configuration)), tuple(records), {1: CIRCUMSTANCES})
    return runs


def verdicts(shares: Mapping[str, float], n: int = 50) -> dict[str, str]:
    statements = {claim.statement: name for name, claim in ARCHITECTURE_CLAIMS.items()}
    found = findings(outcomes(curves(shares, n=n)))
    return {statements[finding.claim.split(" (section")[0]]: finding.verdict for finding in found}


def test_peaks_are_where_the_mean_confidence_under_attack_is_highest() -> None:
    runs = curves({ORIGINAL: 0.5}, best=300)
    (original,) = outcomes(runs)
    assert original.peak == (300, 300, 300)
    assert original.confidence("fgsm-5", 100) == pytest.approx(0.45)
    # An image whose confidence is not known counts as 0, and clean images do not move the peak.
    changed = [
        dataclasses.replace(r, confidence=None, prediction=-1, status="diverged")
        if (r.condition, r.budget) == ("fgsm-5", 300)
        else dataclasses.replace(r, confidence=1.0)
        if (r.condition, r.budget) == ("clean", 200)
        else r
        for r in runs[ORIGINAL].records
    ]
    (spoiled,) = outcomes({ORIGINAL: dataclasses.replace(runs[ORIGINAL], records=tuple(changed))})
    assert spoiled.peak.budget == 100
    assert spoiled.confidence("fgsm-5", 300) == 0


def test_the_peaks_interval_is_of_the_resampled_images() -> None:
    """Two kinds of images with peaks of their own, and one more of the first kind."""
    runs = curves({ORIGINAL: 1.0}, n=11)
    records = [
        dataclasses.replace(r, confidence=0.9 if r.budget == (100 if r.position < 6 else 300) else 0.1)
        for r in runs[ORIGINAL].records
    ]
    (original,) = outcomes({ORIGINAL: dataclasses.replace(runs[ORIGINAL], records=tuple(records))})
    assert original.peak == (100, 100, 300)


def test_contrasts_are_of_the_same_images() -> None:
    original, other = outcomes(curves({ORIGINAL: 0.8, "no-skips": 0.6}))
    shown = contrast(other, original, "clean")
    assert shown.split[:2] == (0, 10)
    assert shown.difference.value == pytest.approx(-0.2)
    assert shown.difference.low < -0.2 < shown.difference.high < 0


def test_networks_of_other_images_or_without_the_original_are_refused() -> None:
    with pytest.raises(ValueError, match="held against the network 'original', which is missing"):
        outcomes(curves({"no-skips": 0.5}))
    with pytest.raises(ValueError, match="no-skips and original were measured on other images"):
        outcomes(curves({ORIGINAL: 0.5}) | curves({"no-skips": 0.5}, n=40))


def test_neighbours_are_the_nearest_on_either_side() -> None:
    names = (ORIGINAL, "no-skips", "skips-16", "skips-128", "1-scale", "2-scales", "4-scales", "half-width", "elu")
    original, *others = outcomes(curves(dict.fromkeys(names, 0.5)))
    found = {name: [one.name for one in pair] for name, pair in neighbours(original, others).items()}
    assert found == {"scales": ["2-scales", "4-scales"], "skip_channels": ["no-skips", "skips-16"]}


SIX = ("2-scales", "4-scales", "nearest", "elu", "swish", "max")


@pytest.mark.parametrize(
    ("share", "n", "verdict"),
    [
        (0.4, 50, CONFIRMED),
        (0.7, 50, UNDECIDED),
        (0.7, 500, CONFIRMED),
        (0.78, 500, CONTRADICTED),
        (1, 50, CONTRADICTED),
    ],
    ids=str,
)
def test_a_network_fails_if_it_loses_and_does_not_if_it_holds(share: float, n: int, verdict: str) -> None:
    """5 fewer of 50 leave a 10-point loss open; 50 of 500 prove it, 10 refute it."""
    found = verdicts({ORIGINAL: 0.8, "no-skips": share, "1-scale": share}, n)
    assert found == {"no skips": verdict, "shallow": verdict}


@pytest.mark.parametrize(
    ("shares", "n", "verdict"),
    [
        ([0.8] * 6, 500, CONFIRMED),
        ([0.74] * 6, 50, UNDECIDED),
        ([0.8] * 4 + [0.3] * 2, 500, CONFIRMED),
        ([0.8] * 3 + [0.3] * 3, 500, UNDECIDED),
        ([0.8] * 2 + [0.3] * 4, 500, CONTRADICTED),
    ],
    ids=str,
)
def test_most_changes_change_little(shares: Sequence[float], n: int, verdict: str) -> None:
    assert verdicts({ORIGINAL: 0.8, **dict(zip(SIX, shares, strict=True))}, n)["sensitivity"] == verdict


@pytest.mark.parametrize(
    ("smaller", "larger", "n", "verdict"),
    [(0.3, 0.3, 50, CONTRADICTED), (0.3, 0.8, 500, CONFIRMED), (0.3, 0.74, 50, UNDECIDED), (1.0, 0.3, 50, CONFIRMED)],
)
def test_a_resonance_stands_out_on_both_sides(smaller: float, larger: float, n: int, verdict: str) -> None:
    assert verdicts({ORIGINAL: 0.8, "2-scales": smaller, "4-scales": larger}, n)["resonance"] == verdict
    assert "resonance" not in verdicts({ORIGINAL: 0.8, "2-scales": smaller}, n)


def test_one_resonance_is_enough_and_every_number_must_be_without() -> None:
    flat = {"2-scales": 0.8, "4-scales": 0.8}
    assert verdicts({ORIGINAL: 0.8, **flat, "half-width": 0.3, "double-width": 0.3}, 500)["resonance"] == CONTRADICTED
    assert verdicts({ORIGINAL: 0.8, **flat, "half-width": 0.3, "double-width": 0.8}, 500)["resonance"] == CONFIRMED


def test_p_values_are_corrected_within_a_claim() -> None:
    """7 : 0 has p = 0.016, which two tests leave below 0.05 and a dozen do not."""
    assert verdicts({ORIGINAL: 0.8, "no-skips": 0.66})["no skips"] == CONFIRMED
    found = findings(outcomes(curves({ORIGINAL: 0.8, **dict.fromkeys(SIX, 0.66)})))
    (sensitivity,) = (finding for finding in found if "change little" in finding.claim)
    assert sensitivity.verdict == UNDECIDED
    assert "0 : 7, p = 0.19: open" in sensitivity.details[0]


def test_reports_have_every_network_its_peak_and_what_it_changes() -> None:
    found = outcomes(curves({ORIGINAL: 0.8, "no-skips": 0.4, "nearest": 0.8}))
    text = as_markdown(found)
    assert "REDUCED SETTING, NOT THE PAPER'S: 50 images instead of 500" in text
    assert "| no skip connections | 1,271,427 | 200 [200, 200] | 40.0 [27.6, 53.8] |" in text
    assert "-40 [-52, -25], 0 : 20, p = 1.9e-06" in text
    assert "- no skip connections: skip_channels 0 instead of 4" in text
    assert "- nearest upsampling: upsampling nearest instead of bilinear" in text
    assert "\n- CONFIRMED in this setting: Without skip connections the defence fails (section 6: “the network" in text
    assert "900 outcomes with command" in text
    header, *lines = as_csv(found).splitlines()
    assert header.startswith("variant,condition,defence,budget,n")
    assert len(lines) == 3 * 2 * 3
    assert lines[0].startswith("original,clean,dip,100,50,80.0,")


def test_reports_count_the_fits_that_diverged() -> None:
    runs = curves({ORIGINAL: 0.8, "no-skips": 0.4})
    lost = [replace(one, status="diverged") if one.image in ("3", "4") else one for one in runs["no-skips"].records]
    text = as_markdown(outcomes(runs | {"no-skips": replace(runs["no-skips"], records=tuple(lost))}))
    assert "- no skip connections: 12 reconstructions diverged, and count as wrong\n" in text
    assert "diverged" not in as_markdown(outcomes(runs))


def test_contrasts_pair_images_whatever_their_order() -> None:
    runs = curves({ORIGINAL: 0.8, "no-skips": 0.4})
    turned = [replace(one, position=49 - one.position) for one in runs["no-skips"].records]
    expected, found = (
        contrast(other, original, "fgsm-5")
        for original, other in (
            outcomes(runs), outcomes(runs | {"no-skips": replace(runs["no-skips"], records=tuple(turned))})
        )
    )  # fmt: skip
    assert found.difference == expected.difference


def test_the_original_alone_has_a_report_without_claims() -> None:
    text = as_markdown(outcomes(curves({ORIGINAL: 0.8})))
    assert "| original | 1,286,463 | 200 [200, 200] |" in text
    assert "The paper's claims" not in text


FOLDERS = sorted(path.parent for path in RESULTS.glob("*/architecture-original.jsonl"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_reports_are_those_of_their_records(folder: Path) -> None:
    assert as_markdown(outcomes(read_runs(folder))) == (folder / "architecture.md").read_text()


def test_titles_are_unique() -> None:
    assert len({variant.title for variant in VARIANTS.values()}) == len(VARIANTS)
