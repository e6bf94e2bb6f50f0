"""How the work of a verification is spread: over Ray tasks, or in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar

from brainfoundry.core.errors import BrainFoundryError, ClusterError

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Applies `work` to every item, in any order, and yields the results as they come."""

    def __call__(self, work: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """The results."""
        ...


def inline(work: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """Executor: one after the other in this process."""
    return map(work, items)


def on_ray(max_tasks: int | None = None, per_task: int = 2) -> Executor:
    """Executor: Ray tasks of one CPU, at most twice as many in flight as CPUs; items are drawn as needed.

    Args:
        max_tasks: most tasks at once; default: the cluster's CPUs.
        per_task: items a task.

    Raises (when run):
        BrainFoundryError: of a task that met one.
        ClusterError: a worker died and went on dying.
    """

    def run(work: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        import ray

        task: Any = ray.remote(num_cpus=1, max_retries=2)(_do)
        # One waiting behind each running one, so that no CPU waits for this process.
        room = 2 * (max_tasks or max(1, int(ray.cluster_resources().get("CPU", 1))))
        if max_tasks:
            room = max_tasks
        source = iter(items)
        flying: list[Any] = []
        try:
            while True:
                while len(flying) < room and (part := list(islice(source, per_task))):
                    flying.append(task.remote(work, part))
                if not flying:
                    return
                done, flying = ray.wait(flying, num_returns=1)
                for results in ray.get(done):
                    if isinstance(results, BrainFoundryError):
                        raise results
                    yield from results
        except ray.exceptions.RayTaskError:
            raise  # a bug: its traceback is wanted
        except ray.exceptions.RayError as error:
            fix = "give the job more memory, or fewer tasks at once (--cpus)"
            raise ClusterError(
                f"a verification task was lost: {str(error).splitlines()[0]}", fix=fix
            ) from error
        finally:
            for reference in flying:
                ray.cancel(reference, force=False)

    return run


def _do(work: Callable[[T], R], items: list[T]) -> list[R] | BrainFoundryError:
    # Returned, not raised: a raised one would arrive as Ray's, with a page of traceback.
    try:
        return [work(item) for item in items]
    except BrainFoundryError as error:
        return error
