"""Batches over the workers of a Ray cluster, for data that one machine is too slow for.

Batches of 'pooled' don't depend on each other, so each goes to an actor that holds the instrumented model, and a few
kilobytes of statistics come back. They are merged here, in the order of the batches: which worker had which plays no
part, and a batch whose worker is lost goes to another. Where actors run and what they may use is Ray's affair. bnfold
has to be installed on every machine of the cluster; the data only here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.recalibrate.measure import make_runner, run
from bnfold.verify.runtime import Feeds, first_line

# Batches that a worker has waiting for it: one to run, one so that it needn't wait.
AHEAD = 2
# How often all workers may be lost.
RESTARTS = 3


class RayEngine:
    """Runs batches on Ray actors, one for each CPU that the cluster has free (or GPU, where the provider needs one).

    Args:
        address: of the cluster; None: the one that Ray finds, or else one on this machine.

    Raises: UsageError if Ray isn't installed.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._ray = _ray()

    def run(self, model: str, provider: str, batches: Iterable[Feeds]) -> Iterator[tuple[Feeds, Feeds]]:
        """See `measure.Engine`."""
        files = {path.name: path.read_bytes() for path in Path(model).parent.iterdir()}
        return self._run(files, os.path.basename(model), provider, batches)

    def _run(
        self, files: dict[str, bytes], name: str, provider: str, batches: Iterable[Feeds]
    ) -> Iterator[tuple[Feeds, Feeds]]:
        mine = not self._ray.is_initialized()
        if mine:
            self._connect()
        try:
            pool = _Pool(self._ray, self._ray.put(files), name, provider)
            try:
                yield from pool.map(batches)
            finally:
                pool.close()
        finally:
            if mine:
                self._ray.shutdown()

    def _connect(self) -> None:
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise UsageError(f"there is no Ray cluster at {self._address}: {first_line(error)}") from error


class _Pool:
    """Actors and the batches that they have."""

    def __init__(self, ray: Any, files: Any, name: str, provider: str) -> None:
        self._ray, self._files, self._name, self._provider = ray, files, name, provider
        kind = "CPU" if provider == "cpu" else "GPU"
        self._wanted = max(1, int(ray.available_resources().get(kind, 1)))
        self._resources = {"num_cpus": 1} if provider == "cpu" else {"num_cpus": 1, "num_gpus": 1}
        self._actors: list[Any] = []
        self._starts = 0
        self._pending: dict[Any, tuple[int, Any]] = {}  # of each result to come: number of the batch, actor
        self._feeds: dict[int, Feeds] = {}  # batches whose turn has not come
        self._done: dict[int, Feeds] = {}

    def map(self, batches: Iterable[Feeds]) -> Iterator[tuple[Feeds, Feeds]]:
        """Each batch with its result, in their order."""
        source, given, told, more = iter(batches), 0, 0, True
        while more or told < given:
            while more and given - told < AHEAD * self._wanted:
                feeds = next(source, None)
                if feeds is None:
                    more = False
                else:
                    self._feeds[given] = feeds
                    self._submit(given)
                    given += 1
            while told < given and told not in self._done:
                self._wait()
            if told in self._done:
                yield self._feeds.pop(told), self._done.pop(told)
                told += 1

    def close(self) -> None:
        """Let the actors go."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _submit(self, number: int) -> None:
        """Give a batch to the actor that has fewest."""
        if not self._actors:
            self._start()
        load = [actor for _, actor in self._pending.values()]
        actor = min(self._actors, key=load.count)
        self._pending[actor.measure.remote(self._feeds[number])] = number, actor

    def _start(self) -> None:
        if self._starts > RESTARTS:
            raise ModelError(f"all workers were lost {RESTARTS} times; is there enough memory for the model?")
        self._starts += 1
        make = self._ray.remote(**self._resources)(_Worker).remote
        self._actors = [make(self._files, self._name, self._provider) for _ in range(self._wanted)]

    def _wait(self) -> None:
        """Take in a result; of a lost worker, give its batch to another."""
        ready, _ = self._ray.wait(list(self._pending), num_returns=1)
        number, actor = self._pending.pop(ready[0])
        try:
            result = self._ray.get(ready[0])
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError):
            if actor in self._actors:
                self._actors.remove(actor)
            self._submit(number)
            return
        if isinstance(result, str):
            raise ModelError(result)
        self._done[number] = result


class _Worker:
    """The instrumented model in a process of a cluster."""

    def __init__(self, files: dict[str, bytes], name: str, provider: str) -> None:
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            for file, content in files.items():
                Path(folder, file).write_bytes(content)
            try:
                self._runner = make_runner(os.path.join(folder, name), provider)
            except BnfoldError as error:
                self._failure = error.what
            else:
                self._failure = ""

    def measure(self, feeds: Feeds) -> Feeds | str:
        """What the model says of a batch, or why it can't be run."""
        if self._failure:
            return self._failure
        try:
            return run(self._runner, feeds)
        except BnfoldError as error:
            return error.what


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("the engine ray needs Ray; pip install 'bnfold[ray]'") from None
    return ray
