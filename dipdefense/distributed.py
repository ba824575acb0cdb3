"""Purification and the tables' runs in the processes of a Ray cluster.

The workers are actors of Ray Data. Each holds a GPU, or as many CPU threads as this process uses, until the work is
done. A worker that dies is replaced, and its unfinished items are done again. The calling process receives every result
exactly once, so a single writer stores them. Results do not depend on the distribution: each item has its own seeds,
and the batches are fixed beforehand.

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
from dipdefense.checks import Seed, check_images, resolve_seeds
from dipdefense.purifier import DIPPurifier, warn_of_divergence

Item = TypeVar("Item")
Result = TypeVar("Result")

# The most attempts at an item. One that kills its worker every time would be retried for ever.
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
    """Call a function with every item in the processes of a Ray cluster.

    Results are yielded as they arrive. Ray starts when the first one is requested, unless this process is connected to
    a cluster already. When the iteration ends or is abandoned, the workers end, and so does Ray if it was started here.
    Ray itself reports dead workers on stdout.

    Args:
        function: copied to each worker once, by cloudpickle, with everything that it refers to.
        items: the arguments, one for each call; copied by pickle.
        workers: number of processes; by default one for each GPU, or as many as the CPUs allow.
        address: of a running cluster, such as "auto" or "10.0.0.1:6379", whose machines have this package and the files
            that the function reads. None is the cluster that this process is connected to; without a connection, new
            processes on this machine.
        gpus: GPUs for each worker; by default 1 where the cluster has any, otherwise 0.

    Yields:
        (index of the item, result), every item once, in any order.

    Raises:
        ImportError: Ray is not installed.
        TypeError, ValueError: an argument is outside its range.
        ValueError, ConnectionError: with the first result: the cluster has too few CPUs or GPUs, or cannot be reached.
        Exception: any error of the function, with the worker's traceback as a note.
        RuntimeError: an item's worker died at each of five attempts.
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

    Every image has the output that ``purifier`` computes for it in this process, bit for bit on CPUs of one kind with
    the same backend, if its ``batch_size`` is ``batch``: a CPU may round an image alone in another way. With
    ``backend="auto"`` each worker tries the backends by itself; name one where that matters.

    Args:
        purifier: the defence; its ``batch_size`` and ``progress`` are not used.
        images: (N, C, H, W) floats in [0, 1]; or a function from indices to such a batch, which the workers call, such
            as ``lambda places: data.stack(places).images``.
        count: the number of images where ``images`` is a function.
        seed: as in :meth:`DIPPurifier.reconstruct`; overrides the purifier's. Fresh seeds are sampled in this process,
            so a repeated batch has the same ones.
        batch: number of images fitted at once.
        workers: see :func:`spread`.
        address: see :func:`spread`.
        gpus: see :func:`spread`.
        progress: show a progress bar with the time left.

    Yields:
        (indices of a batch, its purified images on the CPU), every image once, in any order. Images whose networks
        diverged are NaN, and a warning names them.

    Raises:
        TypeError, ValueError, ImportError, ConnectionError, RuntimeError: see :func:`spread`. Errors in a batch that a
            function returns come from its worker.

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
            raise ValueError(f"count is for images that a function returns; the tensor has its own, got {count}")
        check_images(images, purifier.config, out_of_range=purifier.out_of_range)
        read, total = _Rows(images.detach().cpu()), len(images)
    elif not callable(images):
        raise TypeError(f"images must be a torch.Tensor or a function from indices to one, got {shown(images)}")
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
            for number, (outputs, diverged) in found:
                bar.update(len(parts[number]))
                if diverged:
                    warn_of_divergence(diverged, purifier.config)
                yield parts[number], outputs

    return purified()


class _Rows:
    """Images in memory by their indices."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __call__(self, places: Sequence[int]) -> Tensor:
        return self._images[list(places)]


class _Purify:
    """A worker's call, which purifies a batch.

    It returns the batch's outputs and the places of the images that diverged.
    """

    def __init__(self, purifier: DIPPurifier, read: Callable[[Sequence[int]], Tensor]) -> None:
        self._purifier, self._read = copy.copy(purifier), read
        self._purifier.progress = False

    def __call__(self, work: tuple[range, Sequence[int]]) -> tuple[Tensor, list[int]]:
        places, seeds = work
        images = self._read(places)
        # The whole batch, whatever memory is free: other chunks might round sums differently.
        self._purifier.batch_size = len(places)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        run = self._purifier.reconstruct(images.to(device), budgets=(self._purifier.iters,), seed=seeds)
        diverged = [place for place, status in zip(places, run.status, strict=True) if status == "diverged"]
        return run.images[0].cpu(), diverged


def require_ray() -> ModuleType:
    """The module ``ray``, with Ray Data loaded.

    Raises:
        ImportError: Ray is not installed; the message says how to install it.
    """
    try:
        # Ray sends usage statistics to its makers unless this is set.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Silences Ray's announcement about the GPUs that workers without any can see; ours see none, see _Worker.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "workers need Ray, which is not installed: pip install dipdefense[ray]; without Ray everything runs "
            "in this process"
        ) from error
    found: ModuleType = ray
    return found


@contextlib.contextmanager
def _connected(ray: ModuleType, address: str | None, workers: int | None) -> Iterator[None]:
    """A connection to a cluster, closed afterwards if it was opened here."""
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
    """The number of GPUs for each worker.

    Raises:
        ValueError: the cluster has fewer.
    """
    there = float(ray.cluster_resources().get("GPU", 0))
    if asked is None:
        return 1.0 if there else 0.0
    if asked > there:
        raise ValueError(f"gpus must be at most the {there:g} that the cluster has, got {asked:g}")
    return asked


def _pool(ray: ModuleType, workers: int | None, items: int, threads: int, gpus: float) -> int:
    """The number of workers, at most one for each item.

    Raises:
        ValueError: so many do not fit the cluster; Ray would wait for ever.
    """
    resources = ray.cluster_resources()
    fit = int(resources.get("GPU", 0) / gpus) if gpus else int(resources.get("CPU", 0)) // threads
    wanted = max(1, min(fit if workers is None else workers, items))
    if wanted > fit:
        raise ValueError(
            f"{wanted} workers of {f'{gpus:g} GPUs' if gpus else f'{threads} CPUs'} each do not fit a cluster of "
            f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs; ask for {fit} or fewer, or for "
            "fewer GPUs or threads for each (gpus, torch.set_num_threads)"
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
        # Referenced here: as plain constructor arguments they would be gone when a worker is replaced.
        shared, attempts = ray.put(function), ray.remote(num_cpus=0)(_Attempts).remote()
        rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
        # One item per block: a dead worker costs only its current items, and every result arrives at once.
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
            # Ray delivers each block once; a writer must be able to rely on that.
            if number not in done:
                done.add(number)
                yield number, value
        if missing := len(items) - len(done):
            raise RuntimeError(f"{missing} of {len(items)} items came back without a result; call again for these")


class _Attempts:
    """An actor that counts the attempts at each item."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """The number of attempts at an item, including this one."""
        self._begun[number] += 1
        return self._begun[number]


class _Worker:
    """An actor with the function and the threads that it may use."""

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
    """The error, or a RuntimeError with the same message where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextlib.contextmanager
def _quiet(ray: ModuleType) -> Iterator[None]:
    """Ray Data without its bars and logs."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start, level = before
        logger.setLevel(level)
