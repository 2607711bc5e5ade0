"""Timing on a GPU: contenders side by side in one process, replayed as CUDA graphs over more memory than the cache holds.

A single time means little: clocks vary with heat and load. So contenders take turns, and what counts is their ratio in
each round. A graph leaves the host out of it: what is compared is the device's work. Arguments rotate among copies
that together are four times the second-level cache, so that every call reads memory, as in a network.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Launch: TypeAlias = Callable[[], Any]
ROUNDS = 7
REPEATS = 7
"""Measurements of a round, of which the median counts."""
LEAST_MICROSECONDS = 2000.0
"""Of one measurement: beside that, the start of a graph, about 10 µs, is little."""
CACHES = 4
"""Arguments are this many times as large as the second-level cache, all copies together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Times of a call by us and by others, in microseconds, one a round.

    Attributes:
        ours: our times.
        peers: those of others, by name.
    """

    ours: tuple[float, ...]
    peers: Mapping[str, tuple[float, ...]]

    @property
    def best_peer(self) -> str:
        """The name of the fastest of them."""
        return min(self.peers, key=lambda name: statistics.median(self.peers[name]))

    @property
    def ratios(self) -> list[float]:
        """How many times as fast we are as the fastest of them, in each round."""
        return [theirs / ours for theirs, ours in zip(self.peers[self.best_peer], self.ours, strict=True)]


def copies(size: int, cache: int) -> int:
    """How many copies of arguments of `size` bytes are larger than :data:`CACHES` caches, 64 at most."""
    return min(64, max(1, math.ceil(CACHES * cache / max(size, 1))))


def calls(fitted: Callable[[int], float], copies: int) -> int:
    """How many calls make one measurement: whole rounds of the copies that take LEAST_MICROSECONDS.

    Args:
        fitted: the microseconds that so many calls take.
        copies: of the arguments.
    """
    each = fitted(copies) / copies
    return copies * max(1, math.ceil(LEAST_MICROSECONDS / max(each, 0.1) / copies))


class Stopwatch:
    """Times calls on one stream, which CuPy's and PyTorch's work share."""

    def __init__(self, cupy: Any, torch: Any) -> None:
        self.cupy, self.torch = cupy, torch
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.torch_stream = torch.cuda.ExternalStream(self.stream.ptr)
        self.start, self.stop = cupy.cuda.Event(), cupy.cuda.Event()

    @property
    def cache(self) -> int:
        """Bytes of the second-level cache."""
        return int(self.cupy.cuda.Device().attributes["L2CacheSize"])

    def compare(self, ours: Sequence[Launch], peers: Mapping[str, Sequence[Launch]]) -> Comparison:
        """Compare what takes no wait of the host, by graphs. Each contender has one call for each copy of the arguments."""
        count = calls(lambda n: self._microseconds(self._our_graph(ours, n)), len(ours))
        graphs = {"": self._our_graph(ours, count)}
        graphs.update({name: self._peer_graph(launches, count) for name, launches in peers.items()})
        return self._in_turns({name: (graph, count) for name, graph in graphs.items()}, self._microseconds)

    def compare_waiting(self, ours: Sequence[Launch], peers: Mapping[str, Sequence[Launch]]) -> Comparison:
        """Compare calls within which the host waits, by its clock."""

        def several(launches: Sequence[Launch], count: int) -> Launch:
            def run() -> None:
                with self.stream, self.torch.cuda.stream(self.torch_stream):
                    for index in range(count):
                        launches[index % len(launches)]()

            run()  # compiles and allocates
            return run

        count = calls(lambda n: self._host_microseconds(several(ours, n)), len(ours))
        contenders = {"": (several(ours, count), count)}
        contenders.update({name: (several(launches, count), count) for name, launches in peers.items()})
        return self._in_turns(contenders, self._host_microseconds)

    def _in_turns(self, contenders: Mapping[str, tuple[Launch, int]], measure: Callable[[Launch], float]) -> Comparison:
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, (launch, count) in contenders.items():
                times[name].append(statistics.median(measure(launch) for _ in range(REPEATS)) / count)
        ours = tuple(times.pop(""))
        return Comparison(ours=ours, peers={name: tuple(values) for name, values in times.items()})

    def _our_graph(self, launches: Sequence[Launch], count: int) -> Launch:
        """A graph of `count` calls. They allocate from a pool of their own, which nobody else writes to."""
        pool = self.cupy.cuda.MemoryPool()
        with self.cupy.cuda.using_allocator(pool.malloc), self.stream:
            for launch in launches:  # compiles, and allocates what can't be while a graph is recorded
                launch()
            self.stream.synchronize()
            self.stream.begin_capture()
            for index in range(count):
                launches[index % len(launches)]()
            graph = self.stream.end_capture()

        def replay(pool: Any = pool) -> None:  # the pool lives as long as the graph
            graph.launch(self.stream)

        return replay

    def _peer_graph(self, launches: Sequence[Launch], count: int) -> Launch:
        graph = self.torch.cuda.CUDAGraph()
        side = self.torch.cuda.Stream()
        with self.torch.cuda.stream(side):  # cuDNN chooses among its algorithms
            for launch in launches:
                launch()
        side.synchronize()
        with self.torch.cuda.graph(graph):
            for index in range(count):
                launches[index % len(launches)]()

        def replay() -> None:
            with self.torch.cuda.stream(self.torch_stream):
                graph.replay()

        return replay

    def _microseconds(self, launch: Launch) -> float:
        self.stream.synchronize()
        self.start.record(self.stream)
        launch()
        self.stop.record(self.stream)
        self.stop.synchronize()
        return 1e3 * float(self.cupy.cuda.get_elapsed_time(self.start, self.stop))

    def _host_microseconds(self, launch: Launch) -> float:
        self.stream.synchronize()
        started = time.perf_counter()
        launch()
        self.stream.synchronize()
        return 1e6 * (time.perf_counter() - started)
