"""Work spread over the processes and machines of a Ray cluster: purification, and the tables' runs.

Ray Data's actors each keep a GPU, or as many threads of a CPU as this process uses, for as long as the work lasts. One
that dies is replaced, and the items that it had not finished are done again. Results come back to the process that
asked, each once, so that a single writer keeps them. Nothing depends on who does what: an item has its own seeds, and
the batches are fixed beforehand.

Needs Ray: ``pip install dipdefense[ray]``.

Example:
    >>> def square(number):
    ...     return number**2
    >>> dict(spread(square, [3, 4], workers=2))  # doctest: +SKIP
    {0: 9, 1: 16}
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import pickle
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dipdefense.arguments import flag, integer, real, shown
from dipdefense.checks import Seed, resolve_seeds
from dipdefense.purifier import DIPPurifier

Item = TypeVar("Item")
Result = TypeVar("Result")

# Times that an item is begun. One that kills its worker every time would go round for ever.
_ATTEMPTS = 5

_LARGEST_POOL = 2**16


def spread(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    address: str | None = None,
    gpus: float | None = None,
) -> Iterator[tuple[int, Result]]:
    """Call a function with every item, in processes of a Ray cluster, and yield each result as it is known.

    Ray is started with the first result that is asked for, unless this process is connected to a cluster already.
    Where the iteration ends or is given up, the workers end, and Ray too if it was started here. Of a worker that dies
    Ray itself tells, on stdout.

    Args:
        function: what to call; copied to each worker once, by cloudpickle, with everything that it refers to.
        items: its argument, one a call; copied by pickle.
        workers: processes; by default one a GPU, or as many as the CPUs allow.
        address: of a running cluster, such as "auto" or "10.0.0.1:6379"; None for processes of this machine, or for
            the cluster that this process is connected to already. Its machines must have this package, and the files
            that the function reads.
        gpus: of each worker; by default 1 where the cluster has any, and 0 otherwise.

    Yields:
        (index of the item, result), every item once, in no order.

    Raises:
        ImportError: Ray is not installed.
        TypeError, ValueError: an argument is outside its range.
        ValueError, ConnectionError: with the first result: the cluster has too few CPUs or GPUs, or is not there.
        Exception: whatever the function raised, with the worker's traceback as a note.
        RuntimeError: an item's worker died five times while it had this item.
    """
    if workers is not None:
        workers = integer("workers", workers, low=1, high=_LARGEST_POOL)
    if gpus is not None:
        gpus = real("gpus", gpus, expected="zero or a positive number", holds=lambda x: x >= 0)
    if not callable(function):
        raise TypeError(f"function must be callable, got {shown(function)}")
    return _results(require_ray(), function, list(items), workers, address, gpus)


def purify_dataset(
    purifier: DIPPurifier,
    images: Tensor | Callable[[Sequence[int]], Tensor],
    count: int | None = None,
    *,
    seed: Seed = None,
    batch: int = 1,
    workers: int | None = None,
    address: str | None = None,
    gpus: float | None = None,
    progress: bool = False,
) -> Iterator[tuple[range, Tensor]]:
    """Purify many images of one size in the processes of a Ray cluster.

    Every image has the output that ``purifier`` has for it in this process: to the bit on a CPU of one kind, with one
    backend. (With ``backend="auto"`` each worker holds a trial of its own; name the backend where that matters.)

    Args:
        purifier: its ``iters``, configuration, precision, backend, stopping and seed count.
        images: (N, C, H, W) floats in [0, 1]; or a function from places to such a batch, called in the workers, such
            as ``lambda places: data.stack(places).images``.
        count: how many images such a function has.
        seed: of the images, as :meth:`DIPPurifier.reconstruct` takes it; overrides the purifier's. Fresh seeds are
            sampled here, so that a batch that is done again has the same.
        batch: images fitted at once.
        workers: see :func:`spread`.
        address: see :func:`spread`.
        gpus: see :func:`spread`.
        progress: show a bar with the time left.

    Yields:
        (places of a batch, its images purified, on the CPU), every image once, in no order.

    Raises:
        TypeError, ValueError, ImportError, ConnectionError, RuntimeError: see :func:`spread`; and whatever is wrong
            with a batch of images, from its worker.

    Example:
        >>> purifier = DIPPurifier(iters=500, seed=0)
        >>> purified = torch.empty(1000, 3, 32, 32)
        >>> for places, outputs in purify_dataset(purifier, torch.rand(1000, 3, 32, 32), batch=32):  # doctest: +SKIP
        ...     purified[places] = outputs
    """
    batch = integer("batch", batch, low=1)
    flag("progress", progress)
    read: Callable[[Sequence[int]], Tensor]
    if isinstance(images, Tensor):
        if count is not None:
            raise ValueError(f"count is for images that a function gives; the tensor has its own, got {count}")
        read, total = _Rows(images.detach().cpu()), len(images)
    elif count is None:
        raise TypeError("count must be given where images is a function")
    else:
        read, total = images, integer("count", count, low=0)
    seeds = resolve_seeds(purifier.seed if seed is None else seed, total)
    parts = [range(start, min(start + batch, total)) for start in range(0, total, batch)]
    work = [(part, seeds[part.start : part.stop]) for part in parts]
    found = spread(_Purify(purifier, read), work, workers=workers, address=address, gpus=gpus)

    def purified() -> Iterator[tuple[range, Tensor]]:
        with tqdm(total=total, unit="image", desc="purifying", disable=not progress) as bar:
            for number, outputs in found:
                bar.update(len(parts[number]))
                yield parts[number], outputs

    return purified()


class _Rows:
    """Images in memory by their places."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __call__(self, places: Sequence[int]) -> Tensor:
        return self._images[list(places)]


class _Purify:
    """What a worker does with a batch."""

    def __init__(self, purifier: DIPPurifier, read: Callable[[Sequence[int]], Tensor]) -> None:
        self._purifier, self._read = copy.copy(purifier), read
        self._purifier.progress = False

    def __call__(self, work: tuple[range, Sequence[int]]) -> Tensor:
        places, seeds = work
        images = self._read(places)
        # The batch as it is, whatever memory is free today: cut otherwise, sums might be rounded otherwise.
        self._purifier.batch_size = len(places)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        run = self._purifier.reconstruct(images.to(device), budgets=(self._purifier.iters,), seed=seeds)
        return run.images[0].cpu()


def require_ray() -> ModuleType:
    """The module, with Ray Data loaded.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        # Ray reports its use to its makers unless it is told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Its announcement of a change of what a worker without GPUs sees of them; ours see none, see _Worker.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "work is spread by Ray, which is not installed: pip install dipdefense[ray]; without it everything runs in "
            "this process"
        ) from error
    found: ModuleType = ray
    return found


@contextlib.contextmanager
def _connected(ray: ModuleType, address: str | None, workers: int | None) -> Iterator[None]:
    """A connection to a cluster; one that was made here is closed afterwards."""
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cpus = max(os.cpu_count() or 1, (workers or 1) * torch.get_num_threads())
        # Without "local" Ray would join the cluster of RAY_ADDRESS or of an earlier "ray start".
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        ray.init(address=address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _gpus(ray: ModuleType, asked: float | None) -> float:
    """GPUs of each worker."""
    there = float(ray.cluster_resources().get("GPU", 0))
    if asked is None:
        return 1.0 if there else 0.0
    if asked > there:
        raise ValueError(f"gpus must be at most the {there:g} that the cluster has, got {asked:g}")
    return asked


def _pool(ray: ModuleType, workers: int | None, items: int, threads: int, gpus: float) -> int:
    """The number of workers, at most one an item.

    Raises:
        ValueError: the cluster cannot have so many; Ray would wait for ever.
    """
    resources = ray.cluster_resources()
    fit = int(resources.get("GPU", 0) / gpus) if gpus else int(resources.get("CPU", 0)) // threads
    wanted = max(1, min(fit if workers is None else workers, items))
    if wanted > fit:
        raise ValueError(
            f"{wanted} workers of {f'{gpus:g} GPUs' if gpus else f'{threads} CPUs'} each do not fit a cluster of "
            f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs; ask for {fit} or fewer, or for "
            "less for each (gpus, torch.set_num_threads)"
        )
    return wanted


def _results(
    ray: ModuleType,
    function: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int | None,
    address: str | None,
    gpus: float | None,
) -> Iterator[tuple[int, Any]]:
    if not items:
        return
    with _connected(ray, address, workers), _quiet(ray):
        threads = torch.get_num_threads()
        gpus = _gpus(ray, gpus)
        size = _pool(ray, workers, len(items), threads, gpus)
        # Held here: were they the constructor's own arguments, they would be gone when a worker is replaced.
        shared, attempts = ray.put(function), ray.remote(num_cpus=0)(_Attempts).remote()
        rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
        # A block an item: a worker's death costs the items in its hands, and a result is here once it is known.
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=([shared], attempts, threads),
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=None if gpus else threads,
            num_gpus=gpus or None,
        )
        done: set[int] = set()
        for row in results.iter_rows():
            number, (failed, value) = row["number"], pickle.loads(row["result"])
            if failed:
                raise value
            # Ray hands on each block once, whoever made it; a writer must be able to rely on it.
            if number not in done:
                done.add(number)
                yield number, value
        if missing := len(items) - len(done):
            raise RuntimeError(f"{missing} of {len(items)} items came back without a result; call again for these")


class _Attempts:
    """An actor: how often each item was begun."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """The attempts at an item, this one included."""
        self._begun[number] += 1
        return self._begun[number]


class _Worker:
    """An actor: the function, and the threads that it may use."""

    def __init__(self, shared: list[Any], attempts: Any, threads: int) -> None:
        import ray

        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(threads)
        self._get, self._function, self._attempts = ray.get, ray.get(shared[0]), attempts

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._get(self._attempts.begin.remote(row["number"])) > _ATTEMPTS:
                raise RuntimeError(
                    f"the worker died {_ATTEMPTS} times in a row at item {row['number']}; its memory may not suffice "
                    "(fewer workers, smaller batches), or the item is at fault"
                )
            result = pickle.dumps((False, self._function(pickle.loads(row["item"]))))
        except Exception as error:
            error.add_note(f"In a worker:\n{traceback.format_exc()}")
            result = pickle.dumps((True, _sendable(error)))
        return {"number": row["number"], "result": result}


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextlib.contextmanager
def _quiet(ray: ModuleType) -> Iterator[None]:
    """Without the bars and logs of Ray Data."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start, level = before
        logger.setLevel(level)
