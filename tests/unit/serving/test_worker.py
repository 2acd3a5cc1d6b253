"""The queue and its one thread: what shares a batch, what is refused, and that nothing accepted is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from PIL import Image

from detrove.errors import InputError
from detrove.serving.limits import Limits
from detrove.serving.refusals import Refusal
from detrove.serving.uploads import inspect
from detrove.serving.worker import Job, Worker

from .conftest import encoded


class Bench:
    """A worker that stands still until told to go, and the batches that it computed."""

    def __init__(self, limits: Limits) -> None:
        self.go = threading.Event()
        self.batches: list[list[tuple[int, int]]] = []
        self.worker = Worker(limits, lambda pictures, seconds: None)

    def compute(self, pictures: list[Image.Image]) -> list[tuple[int, int]]:
        assert self.go.wait(30)
        self.batches.append([picture.size for picture in pictures])
        return self.batches[-1]

    def job(self, width: int, height: int = 8, alone: bool = False) -> Job:
        upload = inspect("a", encoded(Image.new("RGB", (width, height))), 1.0)
        return Job(upload, self.compute, None if alone else (width, height))

    def hold(self) -> Job:
        """A job that keeps the thread busy, so that all that follow wait in the queue."""
        job = self.job(1, alone=True)
        self.worker.submit([job])
        while not job.answer.running():
            pass
        return job


@pytest.fixture
def bench(limits: Limits):
    bench = Bench(limits)
    yield bench
    bench.go.set()
    bench.worker.close()


def test_pictures_of_one_size_share_a_batch_and_the_oldest_is_first(bench: Bench) -> None:
    held = bench.hold()
    jobs = [bench.job(width) for width in (20, 30, 20, 20, 30, 20)] + [bench.job(20, alone=True)]
    bench.worker.submit(jobs)
    assert bench.worker.num_waiting == 7
    bench.go.set()
    assert [job.answer.result(30) for job in jobs] == [(width, 8) for width in (20, 30, 20, 20, 30, 20, 20)]
    assert held.answer.result(30) == (1, 8)
    assert [[width for width, _ in batch] for batch in bench.batches] == [[1], [20, 20, 20], [30, 30], [20], [20]]


def test_a_batch_has_no_more_pixels_than_the_largest_picture() -> None:
    bench = Bench(Limits(megapixels=0.01))
    bench.hold()
    jobs = [bench.job(60, 70) for _ in range(3)]
    bench.worker.submit(jobs)
    bench.go.set()
    bench.worker.close()
    assert [len(batch) for batch in bench.batches] == [1, 2, 1]


def test_what_does_not_fit_is_refused_whole_and_told_when_to_come_back(bench: Bench) -> None:
    bench.hold()
    bench.worker.submit([bench.job(20) for _ in range(6)])
    with pytest.raises(Refusal, match="6 pictures are waiting, at most 8") as refused:
        bench.worker.submit([bench.job(20) for _ in range(3)])
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) >= 1
    assert bench.worker.num_waiting == 6
    bench.worker.submit([bench.job(20) for _ in range(2)])


def test_jobs_that_were_given_up_are_not_computed(bench: Bench) -> None:
    bench.hold()
    jobs = [bench.job(20), bench.job(30), bench.job(20)]
    bench.worker.submit(jobs)
    assert jobs[0].answer.cancel()
    assert jobs[1].answer.cancel()
    bench.go.set()
    assert jobs[2].answer.result(30) == (20, 8)
    assert bench.batches == [[(1, 8)], [(20, 8)]]


def test_closing_answers_what_was_accepted(bench: Bench) -> None:
    bench.hold()
    jobs = [bench.job(20 + place) for place in range(5)]
    bench.worker.submit(jobs)
    closing = threading.Thread(target=bench.worker.close)
    closing.start()
    bench.go.set()
    closing.join(30)
    assert all(job.answer.done() for job in jobs)
    assert not bench.worker.is_alive
    with pytest.raises(Refusal) as refused:
        bench.worker.submit([bench.job(20)])
    assert refused.value.status == 503


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Limits(queue=0), "--max-queue must be above 0"),
        (lambda: Limits(seconds=float("nan")), "--max-seconds"),
        (lambda: Limits(megapixels=500), "at most 178"),
        (lambda: Limits(pictures=40), "would never fit"),
    ],
)
def test_limits_that_cannot_be(make: Callable[[], Limits], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
