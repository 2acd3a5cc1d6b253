"""Several processes on this machine, one for each device: `detrove train --devices`.

What torchrun does across machines, this does on one, in fewer words: the first fault is told once, as an `InputError`
where it is one, and Ctrl-C reaches the processes as it would reach a single one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from detrove.errors import InputError
from detrove.training.processes import ProcessLost, is_launched

GRACE = 10.0
"""Seconds in which the others may end by themselves when one has; then they are ended."""

POLL = 0.2
"""Seconds after which it is asked again whether a process has ended."""

Answer = tuple[str, Any]
DONE, REFUSED, LOST, INTERRUPTED = "done", "refused", "lost", "interrupted"


def launch(devices: int, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call `function(**arguments)` in `devices` processes that know of each other; what the first of them returns.

    Raises `InputError` where one of them does, where one is killed, or where there are not so many GPUs.
    """
    _require_devices(devices)
    context = multiprocessing.get_context("spawn")
    port, processes, answers = _free_port(), [], []
    for rank in range(devices):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(sending, rank, devices, port, function, dict(arguments)))
        process.start()
        sending.close()
        processes.append(process)
        answers.append(receiving)
    with _deaf_to_ctrl_c():
        told, ended_here = _collect(processes, answers)
    return _outcome(processes, told, ended_here)


def _require_devices(devices: int) -> None:
    if devices < 1:
        raise InputError(f"--devices must be at least 1, got {devices}")
    if is_launched():
        raise InputError("--devices: a launcher has started several processes already; leave it out")
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise InputError(f"--devices {devices}: this machine has {torch.cuda.device_count()} GPUs")


def _work(
    answers: Connection, rank: int, number: int, port: int, function: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    """One process: its place among all goes where launchers put it, its answer into the pipe."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // number))
    torch.set_num_threads(int(threads))
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(number),
        LOCAL_WORLD_SIZE=str(number),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS=threads,
    )
    try:
        answer = function(**arguments)
    except InputError as error:
        answers.send((LOST if isinstance(error, ProcessLost) else REFUSED, str(error)))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        answers.send((INTERRUPTED, None))
        raise SystemExit(130) from None
    answers.send((DONE, answer if rank == 0 else None))


def _collect(processes: list[BaseProcess], answers: list[Connection]) -> tuple[list[Answer | None], set[int]]:
    """What each process said last, None where it was killed before it could; and which were ended from here.

    Once one has failed, the others have a little time to end by themselves; then they are ended. Whether a process has
    ended is asked again and again: the ends of its pipes may live on in processes that load pictures for it.
    """
    told: list[Answer | None] = [None] * len(processes)
    running, ended_here, deadline = set(range(len(processes))), set(), float("inf")
    while running:
        wait([answers[rank] for rank in running if told[rank] is None], POLL)
        ended = {rank for rank in running if processes[rank].exitcode is not None}
        for rank in running:
            if told[rank] is None and answers[rank].poll():
                with suppress(EOFError):
                    told[rank] = answers[rank].recv()
        running -= ended
        if deadline == float("inf") and any(processes[rank].exitcode for rank in ended):
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            ended_here |= running
            for rank in running:
                processes[rank].kill()
    return told, ended_here


def _outcome(processes: list[BaseProcess], told: list[Answer | None], ended_here: set[int]) -> Any:
    """What the first process returned, or the fault that ended them all."""
    by_kind = dict(reversed([answer for answer in told if answer]))
    if REFUSED in by_kind:
        raise InputError(by_kind[REFUSED])
    if INTERRUPTED in by_kind:
        raise KeyboardInterrupt
    for rank, process in enumerate(processes):
        if told[rank] is None and rank not in ended_here:
            raise InputError(
                f"process {rank + 1} of {len(processes)} {_how_it_ended(process.exitcode or 0)}; all others were "
                "ended. What was saved last is whole: continue the run with --resume"
            )
    if LOST in by_kind:
        raise InputError(by_kind[LOST])
    return by_kind[DONE]


def _how_it_ended(exitcode: int) -> str:
    if exitcode == -signal.SIGKILL:
        return "was killed, most often for want of memory (a smaller --batch-size takes less)"
    if exitcode < 0:
        return f"was ended by the signal {signal.Signals(-exitcode).name}"
    return f"failed with exit status {exitcode} (its traceback stands above)"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A terminal sends Ctrl-C to all processes; those that train answer it, this one waits for them."""
    if threading.current_thread() is not threading.main_thread():  # Python lets only that one decide on signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
