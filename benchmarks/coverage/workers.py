"""Runs a function on many items, each in a process of its own with limits on time and memory."""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any


class OutOfTimeError(BaseException):
    """The item has used its processor time; what is known of it by then can still be sent.

    No `Exception`: what tries one way after another must not go on to the next.
    """


@dataclass(frozen=True, slots=True)
class Limits:
    """What one item may use.

    Attributes:
        processor_seconds: CPU time.
        wall_seconds: Time on the clock, for a process that waits forever.
        memory: Bytes of address space.
    """

    processor_seconds: int = 90
    wall_seconds: int = 500
    memory: int = 9 * 2**30


@dataclass(slots=True)
class _Worker:
    item: str
    process: BaseProcess
    results: Connection
    deadline: float


def run_all(
    work: Callable[[str], dict[str, Any]], items: Iterable[str], workers: int, limits: Limits
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yields each item with its result as it comes, or with the reason why there is none.

    The processes are forked, so that what is imported here need not be imported there.
    """
    context = multiprocessing.get_context("fork")
    waiting = list(items)[::-1]
    running: list[_Worker] = []
    while waiting or running:
        while waiting and len(running) < workers:
            item = waiting.pop()
            results, sender = context.Pipe(duplex=False)
            process = context.Process(target=_within_limits, args=(work, item, sender, limits), daemon=True)
            process.start()
            sender.close()
            running.append(_Worker(item, process, results, time.monotonic() + limits.wall_seconds))
        wait([worker.results for worker in running], timeout=5)
        for worker in list(running):
            ended = worker.results.poll() or not worker.process.is_alive()
            if ended or time.monotonic() > worker.deadline:
                running.remove(worker)
                yield worker.item, _result(worker, limits)


def _result(worker: _Worker, limits: Limits) -> dict[str, Any] | str:
    try:
        if worker.results.poll():
            return worker.results.recv()
    except EOFError:
        pass
    finally:
        if worker.process.is_alive():
            worker.process.join(1)
        worker.process.kill()
        worker.process.join()
        worker.results.close()
    return f"ended without a result (exit {worker.process.exitcode}) within {limits}"


def _within_limits(
    work: Callable[[str], dict[str, Any]], item: str, results: Connection, limits: Limits
) -> None:
    def stop(*_: Any) -> None:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)  # which comes again every second
        raise OutOfTimeError(f"more than {limits.processor_seconds} seconds of processor time")

    signal.signal(signal.SIGXCPU, stop)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.processor_seconds, limits.processor_seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    results.send(work(item))
