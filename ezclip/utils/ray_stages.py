"""Two stages of work on Ray Data: one decodes on CPUs, the other embeds on GPUs, or on CPUs where there are none."""

import contextlib
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow
import torch

from ezclip.errors import DataError
from ezclip.utils.tables import count_of


DECODING_SHARE = 8  # a node without GPUs gives one CPU of so many to decoding: embedding takes longer
MAX_RESTARTS = 20  # of each worker: one that the system always kills must not run for ever
MAX_TASKS_IN_FLIGHT = 2  # blocks of each worker: one in work, and one that waits
MAX_BLOCKS = 4096  # of the items: Ray's driver keeps a reference to each
COLUMN = "pickle"


@dataclass
class RayPlan:
    """
    The workers of a cluster.

    Args:
        num_nodes (`int`):
            Nodes.
        num_decoders (`int`):
            Workers that decode, on one CPU each.
        num_embedders (`int`):
            Workers that embed.
        num_threads (`int`):
            CPUs of a worker that embeds, and its threads.
        num_gpus (`int`):
            GPUs of a worker that embeds.
    """

    num_nodes: int
    num_decoders: int
    num_embedders: int
    num_threads: int
    num_gpus: int

    @classmethod
    def of_nodes(cls, nodes: list[dict[str, float]]) -> "RayPlan":
        """
        Divide the CPUs and GPUs of nodes: each CPU has one thread of one worker.

        Args:
            nodes (`list[dict[str, float]]`):
                The resources of each node: `CPU`, and `GPU` if it has any.

        Raises:
            [`DataError`]: if there are fewer than two CPUs, or as few as GPUs.
        """
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        if sum(cpus) < max(2, num_gpus + 1):
            raise DataError(
                f"Ray must have a CPU to decode and one for each worker that embeds, got {sum(cpus)} CPUs and "
                f"{num_gpus} GPUs. Start it with more: `ray start --num-cpus`."
            )
        if num_gpus:
            return cls(len(nodes), sum(cpus) - num_gpus, num_gpus, 1, 1)
        smallest = min(number for number in cpus if number)
        num_threads = max(1, smallest - max(1, smallest // DECODING_SHARE))
        num_embedders = sum(max(1, number - 1) // num_threads for number in cpus if number)
        num_embedders = min(num_embedders, (sum(cpus) - 1) // num_threads)
        return cls(len(nodes), sum(cpus) - num_embedders * num_threads, num_embedders, num_threads, 0)

    def __str__(self) -> str:
        threads = count_of(self.num_threads, "thread")
        device = " and a GPU" if self.num_gpus else ""
        return (
            f"{count_of(self.num_decoders, 'decoding worker')}, {count_of(self.num_embedders, 'embedding worker')} of "
            f"{threads}{device}, on {count_of(self.num_nodes, 'node')}"
        )


class RayStages:
    """
    A Ray cluster that decodes and embeds: that of `RAY_ADDRESS`, or this machine.

    Ray Data streams the items through both stages. Memory is bounded by its executor: a worker has
    `MAX_TASKS_IN_FLIGHT` blocks, and a stage that is ahead waits when it fills its share of the object store.

    Args:
        use_gpus (`bool`, *optional*, defaults to `True`):
            Whether to embed on the GPUs of the cluster, if it has any.

    Raises:
        [`DataError`]: if Ray is not installed or cannot be reached, or has too few CPUs.
    """

    def __init__(self, use_gpus: bool = True):
        ray = require_ray()
        self.ray, self.starts_ray = ray, not ray.is_initialized()
        if self.starts_ray:
            where: dict[str, Any] = {"address": os.environ.get("RAY_ADDRESS") or "local"}
            if where["address"] == "local":  # and not a cluster that someone else started on this machine
                where |= {"num_cpus": max(2, os.cpu_count() or 1), "include_dashboard": False}
            try:
                ray.init(**where, logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise DataError(f"Ray cannot be reached ({error}). Correct RAY_ADDRESS, or unset it.") from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.plan = RayPlan.of_nodes(nodes if use_gpus else [{**node, "GPU": 0} for node in nodes])

    def __enter__(self) -> "RayStages":
        return self

    def __exit__(self, *_):
        if self.starts_ray:
            self.ray.shutdown()

    def run(
        self, items: list, make_decode: Callable[[bool], Callable], make_embed: Callable[[bool], Callable]
    ) -> Iterator[Any]:
        """
        Yield the results of all items, in the order of the items.

        A worker that is lost starts again, and does its unfinished items again.

        Args:
            items (`list`):
                Small picklable objects, such as paths.
            make_decode (`Callable[[], Callable]`):
                A picklable function. Each decoding worker calls it once, with whether it has no GPU. It returns a
                generator function that takes an item and yields what is to be embedded.
            make_embed (`Callable[[], Callable]`):
                The same for embedding workers. Its function takes what the first yields, and yields results. The
                cluster stores it once, with its model.

        Raises:
            The errors of the two functions. [`DataError`]: if a worker is lost more than `MAX_RESTARTS` times.
        """
        if not items:
            return
        data, plan = self.ray.data, self.plan
        number = min(len(items), MAX_BLOCKS)
        rows = [{COLUMN: pickle.dumps(item)} for item in items]
        dataset = data.from_items(rows, override_num_blocks=number)
        dataset.context.execution_options.preserve_order = True
        dataset.context.target_max_block_size = 1  # each yielded object is a block: all workers get some
        dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
        stages = (
            (make_decode, plan.num_decoders, 1, 0),
            (make_embed, plan.num_embedders, plan.num_threads, plan.num_gpus),
        )
        # Ray's own default restarts a worker for ever, and the options that bound it are deprecated: see setup.py.
        warnings.filterwarnings("ignore", message=".*ray_remote_args", module=__name__)
        for make, size, num_threads, num_gpus in stages:
            dataset = dataset.map_batches(
                _Worker,
                fn_constructor_args=(self.ray.put(make), num_threads, num_gpus == 0, os.getcwd()),
                batch_size=None,
                batch_format="pyarrow",
                compute=data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=MAX_TASKS_IN_FLIGHT),
                num_cpus=num_threads,
                num_gpus=num_gpus,
                max_restarts=MAX_RESTARTS,
                max_task_retries=MAX_RESTARTS,
            )
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from map(pickle.loads, batch[COLUMN].to_pylist())
        except Exception as error:
            raise _cause_of(error) from error


def require_ray() -> Any:
    """Return the module `ray`, or raise a [`DataError`] if Ray Data is not installed."""
    # Nothing of a run leaves the machines.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1")
    # Ray Data's workers restart with arguments in the object store, and Ray warns of it as an error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DataError(f"Ray Data is missing ({error}). Install it: pip install 'ezclip[ray]'") from error
    return ray


class _Worker:
    """A worker of a stage. `reference` is that of a function that makes the function of the stage."""

    def __init__(self, reference, num_threads: int, has_no_gpu: bool, folder: str):
        import ray

        torch.set_num_threads(num_threads)
        with contextlib.suppress(OSError):  # relative paths are relative to the driver's working folder
            os.chdir(folder)
        self.work = ray.get(reference)(has_no_gpu)

    @torch.no_grad()
    def __call__(self, batch: pyarrow.Table) -> Iterator[pyarrow.Table]:
        for item in batch[COLUMN].to_pylist():
            for result in self.work(pickle.loads(item)):
                yield pyarrow.table({COLUMN: pyarrow.array([pickle.dumps(result)], pyarrow.large_binary())})


def _cause_of(error: BaseException) -> BaseException:
    """Return the error of a worker's function that Ray has wrapped, or one that tells why Ray has none."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = getattr(seen, "cause", None) or seen.__cause__
    own = [one for one in chain if not type(one).__module__.startswith("ray.")]
    return own[-1] if own else DataError(f"Ray gave up ({error}). Run the same command again to resume.")
