"""Work spread over Ray: every item once, the same results, whoever dies."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from measuring import tiny_defences, tiny_measure, tiny_subject

from dipdefense import DIPConfig, DIPPurifier, distributed
from dipdefense.attacks import Attack
from dipdefense.distributed import purify_dataset, spread
from dipdefense.evaluation import Setting, measure

IMAGES = torch.rand(5, 3, 32, 32)


def elsewhere(function, items) -> Iterator[tuple[int, object]]:
    """As Ray does it: everything pickled both ways, and the last item first."""
    cloudpickle = pytest.importorskip("cloudpickle")
    function = pickle.loads(cloudpickle.dumps(function))
    for number in reversed(range(len(items))):
        yield number, pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(items[number])))))


@pytest.fixture
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.mark.usefixtures("_without_ray")
def test_without_ray_the_extra_is_named_before_any_work() -> None:
    for call in (lambda: spread(len, [[1]]), lambda: purify_dataset(DIPPurifier(), IMAGES)):
        with pytest.raises(ImportError, match=r"Ray, which is not installed: pip install dipdefense\[ray\]"):
            call()


BAD = {
    "no workers": (lambda: spread(len, [], workers=0), ValueError, "workers must be an integer of at least 1"),
    "gpus": (lambda: spread(len, [], gpus=-1), ValueError, "gpus must be zero or a positive number, got -1"),
    "no function": (lambda: spread("len", []), TypeError, "function must be callable, got 'len'"),
    "no batch": (lambda: purify_dataset(DIPPurifier(), IMAGES, batch=0), ValueError, "batch must be an integer"),
    "a count too many": (lambda: purify_dataset(DIPPurifier(), IMAGES, 5), ValueError, "count is for images that a"),
    "no count": (lambda: purify_dataset(DIPPurifier(), len), TypeError, "count must be given where images is"),
    "an array": (
        lambda: purify_dataset(DIPPurifier(), IMAGES.numpy(), 5),
        TypeError,
        "must be a torch.Tensor or a func",
    ),
    "a range": (lambda: purify_dataset(DIPPurifier(), IMAGES * 255), ValueError, r"images must lie in \[0, 1\]"),
    "seeds": (lambda: purify_dataset(DIPPurifier(), IMAGES, seed=[1]), ValueError, "got 1 seeds for 5 images"),
    "progress": (lambda: purify_dataset(DIPPurifier(), IMAGES, progress=1), TypeError, "progress must be True or"),
}


@pytest.mark.usefixtures("_without_ray")
@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_before_ray_starts(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("seed", [3, range(5), None], ids=["one", "one an image", "fresh"])
def test_batches_are_purified_as_here(seed, monkeypatch: pytest.MonkeyPatch, tiny: DIPConfig) -> None:
    monkeypatch.setattr(distributed, "spread", lambda function, items, **_: elsewhere(function, items))
    purifier = DIPPurifier(3, config=tiny, seed=seed, batch_size=1, progress=True)
    found = torch.full_like(IMAGES, torch.nan)
    torch.manual_seed(1)
    for places, outputs in purify_dataset(purifier, IMAGES, batch=2):
        assert len(places) == len(outputs) <= 2
        found[places] = outputs
    torch.manual_seed(1)
    assert torch.equal(found, purifier(IMAGES))
    assert purifier.progress
    torch.manual_seed(1)
    by_function = purify_dataset(purifier, lambda places: IMAGES[list(places)], 5, batch=2)
    assert all(torch.equal(outputs, found[places]) for places, outputs in by_function)


def test_diverging_images_are_named_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "spread", lambda function, items, **_: elsewhere(function, items))
    purifier = DIPPurifier(4, config=DIPConfig(scales=2, channels=4, learning_rate=1e30), seed=0)
    with pytest.warns(RuntimeWarning) as warned:
        found = dict(purify_dataset(purifier, IMAGES, batch=3))
    assert all(outputs.isnan().all() for outputs in found.values())
    assert [str(each.message).split(" diverged")[0] for each in warned] == [
        "the networks of the images at [3, 4]", "the networks of the images at [0, 1, 2]"
    ]  # fmt: skip
    assert {each.filename for each in warned} == {__file__}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_measurement_spread_elsewhere_is_the_one_made_here(batch: int, tmp_path: Path) -> None:
    defences = tiny_defences()
    here = tiny_measure(tmp_path / "here", batch=batch, defences=defences)
    setting = Setting(out=tmp_path / "there", batch=batch, progress=False)
    conditions = {"clean": None, "noise-10": Attack("noise", 10)}
    there = measure(setting, tiny_subject(), conditions=conditions, defences=defences, spread=elsewhere)
    assert [(r.key, r.prediction, r.confidence, r.loss) for r in there.records] == [
        (r.key, r.prediction, r.confidence, r.loss) for r in here.records
    ]
    again = measure(setting, tiny_subject(), conditions=conditions, defences=defences, spread=lambda *_: iter(()))
    assert again.records == there.records


def test_an_image_that_is_gone_is_named_here(tmp_path: Path) -> None:
    subject = tiny_subject()
    setting = Setting(out=tmp_path, batch=2, progress=False)
    subject.data.bad.add(subject.ids[1])
    with pytest.warns(UserWarning, match="it is left out"):
        run = measure(setting, subject, conditions={"clean": None}, defences=tiny_defences(), spread=elsewhere)
    assert run.skipped == (subject.ids[1],)
    assert len({record.image for record in run.records}) == 4


def test_without_an_address_no_running_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """One from RAY_ADDRESS or "ray start" refuses num_cpus, and was not asked for."""
    calls: list[dict] = []
    ray = types.SimpleNamespace(
        is_initialized=lambda: False, init=lambda **given: calls.append(given), shutdown=lambda: None
    )
    for address in (None, "10.0.0.1:6379"):
        with distributed._connected(ray, address, 1):
            pass
    assert [call["address"] for call in calls] == ["local", "10.0.0.1:6379"]
    assert ["num_cpus" in call for call in calls] == [True, False]


@pytest.fixture(scope="module")
def _ray() -> None:
    pytest.importorskip("ray.data")


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_ray_calls_every_item_once_and_hands_errors_on() -> None:
    import ray

    def square(number: int) -> int:
        return number**2

    def picky(number: int) -> int:
        if number == 3:
            raise LookupError("no three")
        return number

    assert dict(spread(square, range(20), workers=2)) == {number: number**2 for number in range(20)}
    with pytest.raises(LookupError, match="no three") as caught:
        list(spread(picky, range(5), workers=2))
    with pytest.raises(RuntimeError, match="the worker died 5 times in a row at item 1"):
        list(spread(lambda number: number == 1 and os.kill(os.getpid(), signal.SIGKILL), range(3), workers=2))
    assert "In a worker:" in caught.value.__notes__[0]
    assert not ray.is_initialized()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert len(list(spread(square, range(3), workers=2))) == 3
        assert ray.is_initialized()
        with pytest.raises(ValueError, match="3 workers of 1 CPUs each do not fit a cluster of 2 CPUs and 0 GPUs"):
            list(spread(square, range(3), workers=3))
        with pytest.raises(ValueError, match="gpus must be at most the 0 that the cluster has, got 1"):
            list(spread(square, range(3), gpus=1))
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_a_thousand_images_survive_three_deaths_of_workers(tmp_path: Path) -> None:
    """Every image comes once, with the pixels of a run in this process."""
    images = torch.rand(1000, 3, 32, 32)
    purifier = DIPPurifier(10, config=DIPConfig.architecture_2(), seed=range(1000), precision="fp32", batch_size=20)
    started = time.perf_counter()
    plain = purifier(images)
    here = time.perf_counter() - started

    def read(places: range) -> torch.Tensor:
        """The images, and the process that reads them."""
        (tmp_path / f"{places[0]}-{os.getpid()}").touch()
        return images[list(places)]

    found, places_seen, killed = torch.full_like(images, torch.nan), [], set()
    started = time.perf_counter()
    for places, outputs in purify_dataset(purifier, read, 1000, batch=20, workers=2):
        places_seen += places
        found[places] = outputs
        if len(killed) < 3 and len(places_seen) >= 200 * (len(killed) + 1):
            newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            worker = int(newest.name.split("-")[1])
            if worker not in killed:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
    there = time.perf_counter() - started
    print(f"1,000 images: {here:.1f} s here, {there:.1f} s with two workers of Ray, {len(killed)} of them killed")
    assert len(killed) == 3
    assert sorted(places_seen) == list(range(1000))
    assert torch.equal(found, plain)


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_a_table_by_ray_is_the_table_made_here(tmp_path: Path) -> None:
    pytest.importorskip("foolbox")
    from dipdefense.classifiers import untrained_cifar10
    from dipdefense.evaluation import read_export

    torch.manual_seed(0)
    torch.save(untrained_cifar10().network.state_dict(), tmp_path / "weights.pt")
    script = Path(__file__).parents[1] / "benchmarks" / "table2.py"
    line = f"{script} --device cpu --classifier cifar10-cnn --weights {tmp_path}/weights.pt --images 1"
    line += " --conditions clean fgsm-5 --config architecture-2 --budgets 1 2 --precision fp32"
    for engine in (["here"], ["ray", "--workers", "2"]):
        command = [sys.executable, *line.split(), "--out", str(tmp_path / engine[0]), "--engine", *engine]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    here, there = (read_export(tmp_path / name / "table2.jsonl") for name in ("here", "ray"))
    assert [(r.key, r.prediction, r.confidence, r.loss) for r in there.records] == [
        (r.key, r.prediction, r.confidence, r.loss) for r in here.records
    ]
