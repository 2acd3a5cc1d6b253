"""The one thread that computes, and the bounded queue before it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from detrove.errors import InputError
from detrove.serving.limits import Limits
from detrove.serving.refusals import Refusal
from detrove.serving.uploads import Upload

logger = logging.getLogger("detrove.serving")

FIRST_GUESS = 0.5
"""Seconds that a picture takes, until one has been measured."""
MEMORY = 0.9
"""The weight of what was measured before, against the latest batch."""


@dataclass(eq=False)
class Job:
    """One picture and what to compute of it.

    Jobs whose `together` is equal, and not None, may share one call of `compute`, which takes pictures and gives as
    many answers.
    """

    upload: Upload
    compute: Callable[[list[Image.Image]], Sequence[Any]]
    together: Hashable | None = None
    answer: Future[Any] = field(default_factory=Future)


class Worker:
    """Computes jobs in the order of their arrival; takes those along that may share the first one's batch.

    Nothing is waited for: a batch is what came in while the last one was computed, so that a lone picture is answered
    at once. `observe` is told every batch's number of pictures and seconds.
    """

    def __init__(self, limits: Limits, observe: Callable[[int, float], None]) -> None:
        self.limits, self._observe = limits, observe
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_each = FIRST_GUESS
        self._computing = 0
        self._dying = False
        self._thread = threading.Thread(target=self._work, name="detrove-worker", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether there is still somebody who computes."""
        return self._thread.is_alive() and not self._dying

    @property
    def num_waiting(self) -> int:
        """Pictures in the queue."""
        return len(self._waiting)

    @property
    def wait(self) -> float:
        """Seconds until a picture that came now would have its turn, by what the last ones took."""
        return (len(self._waiting) + self._computing) * self._seconds_each

    def refuse_if_full(self, num_pictures: int = 1) -> None:
        """Raise the `Refusal` 429 where so many pictures do not fit into the queue now, 503 where nobody computes."""
        if not self.is_alive or self._closing:
            raise Refusal(503, "the service is not computing any more; it has to be started again", self.limits.seconds)
        if len(self._waiting) + num_pictures > self.limits.queue:
            raise Refusal(
                429, f"busy: {len(self._waiting)} pictures are waiting, at most {self.limits.queue} may", self.wait
            )

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of them, or raise a `Refusal`."""
        with self._changed:
            self.refuse_if_full(len(jobs))
            self._waiting.extend(jobs)
            self._changed.notify()

    def close(self) -> None:
        """Compute what was accepted, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                started = time.perf_counter()
                self._answer(batch)
                seconds = time.perf_counter() - started
                self._seconds_each = MEMORY * self._seconds_each + (1 - MEMORY) * seconds / len(batch)
                self._computing = 0
                self._observe(len(batch), seconds)
        except BaseException as error:
            logger.critical("the computing thread died", exc_info=error)
        finally:
            # Jobs are left only where the thread dies: nobody shall wait for an answer that cannot come.
            with self._changed:
                self._closing = True
                for job in self._waiting:
                    if job.answer.set_running_or_notify_cancel():
                        job.answer.set_exception(_broken_down())
                self._waiting.clear()

    def _next_batch(self) -> list[Job]:
        """The oldest job and those that may go with it, none of them given up; empty when it is time to stop."""
        with self._changed:
            while True:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return []
                batch = [job for job in self._take_together() if job.answer.set_running_or_notify_cancel()]
                if batch:
                    self._computing = len(batch)
                    return batch

    def _take_together(self) -> list[Job]:
        """As many as a batch holds, and no more pixels than the largest picture may have."""
        first = self._waiting.popleft()
        if first.together is None:
            return [first]
        batch, pixels = [first], first.upload.width * first.upload.height
        for job in list(self._waiting):
            if job.together != first.together:
                continue
            pixels += job.upload.width * job.upload.height
            if len(batch) == self.limits.batch or pixels > self.limits.pixels:
                break
            batch.append(job)
            self._waiting.remove(job)
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        """Give every job its answer, or what is wrong with its picture."""
        decoded: list[tuple[Job, Image.Image]] = []
        for job in batch:
            try:
                decoded.append((job, job.upload.decode()))
            except InputError as error:
                job.answer.set_exception(Refusal(422, str(error)))
            except Exception as error:  # our fault, and this picture's alone
                logger.error("decoding failed", exc_info=error, extra={"picture": job.upload.name})
                job.answer.set_exception(Refusal(500, "decoding failed; see the log"))
            except BaseException:
                self._die(batch)
                raise
        if decoded:
            self._compute([job for job, _ in decoded], [picture for _, picture in decoded])

    def _compute(self, jobs: Sequence[Job], pictures: list[Image.Image]) -> None:
        try:
            answers = jobs[0].compute(pictures)
        except Exception as error:
            if len(jobs) > 1:  # one of them may be at fault: the others shall not suffer
                for job, picture in zip(jobs, pictures, strict=True):
                    self._compute([job], [picture])
                return
            is_refusal = isinstance(error, Refusal)
            if not is_refusal:
                logger.error("computing failed", exc_info=error, extra={"picture": jobs[0].upload.name})
            jobs[0].answer.set_exception(error if is_refusal else Refusal(500, "computing failed; see the log"))
        except BaseException:
            self._die(jobs)
            raise
        else:
            for job, answer in zip(jobs, answers, strict=True):
                job.answer.set_result(answer)

    def _die(self, jobs: Sequence[Job]) -> None:
        """The thread is about to die, which all can see before those hear of it that it was computing for."""
        self._dying = True
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(_broken_down())


def _broken_down() -> Refusal:
    return Refusal(503, "the service broke down before this was computed")
