import pytest

from detrove.training.clock import TrainingClock


class FakeTime:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def clock_with_steps(budget: float | None, *durations: float) -> tuple[TrainingClock, FakeTime]:
    time = FakeTime()
    clock = TrainingClock(budget, now=time)
    for duration in durations:
        time.seconds += duration
        clock.step()
    return clock, time


def test_preparation_and_steps_count():
    time = FakeTime()
    clock = TrainingClock(100, now=time)
    time.seconds += 200  # opening a large data set is no sleep
    clock.prepared()
    time.seconds += 3
    clock.step()
    assert clock.used == pytest.approx(203)


def test_paused_time_does_not_count():
    clock, time = clock_with_steps(60, 1.0)
    time.seconds += 0.5
    with clock.paused():
        time.seconds += 30
    time.seconds += 0.5
    clock.step()
    assert clock.used == pytest.approx(2.0)
    assert clock.paused_seconds == pytest.approx(30)


def test_a_slept_laptop_spends_one_ordinary_step():
    clock, time = clock_with_steps(600, 1.0, 2.0)
    time.seconds += 8 * 3600
    clock.step()
    assert clock.used == pytest.approx(4.5)


@pytest.mark.parametrize("slow", [59.0, 190.0])
def test_a_slow_step_counts_in_full(slow: float):
    clock, time = clock_with_steps(600, 10.0)
    time.seconds += slow
    clock.step()
    assert clock.used == pytest.approx(10 + slow)


def test_a_first_step_of_any_length_counts_in_full():
    clock, _ = clock_with_steps(600, 120.0)
    assert clock.used == pytest.approx(120)


def test_stops_before_the_step_that_would_pass_the_budget():
    clock, time = clock_with_steps(10.0)
    while clock.allows_another_step():
        time.seconds += 0.3
        clock.step()
    assert 9.5 <= clock.used <= 10.0
    assert clock.fraction == pytest.approx(clock.used / 10)


def test_one_step_is_always_allowed():
    time = FakeTime()
    clock = TrainingClock(1.0, now=time)
    time.seconds += 5
    clock.prepared()
    assert clock.allows_another_step()
    clock.step()
    assert not clock.allows_another_step()


def test_without_a_budget_there_is_always_time():
    clock, _ = clock_with_steps(None, 1000.0)
    assert clock.allows_another_step()
    assert clock.fraction == 0


def test_a_continued_clock_knows_the_time_used_and_the_steps():
    before, _ = clock_with_steps(10.0, 3.0, 1.0, 2.0)
    time = FakeTime()
    after = TrainingClock(10.0, now=time)
    time.seconds += 1.5
    after.prepared()
    after.restore(before.state())
    assert after.used == pytest.approx(7.5)  # 6 before, and its own preparation
    assert after.seconds_per_step == before.seconds_per_step == 2.0
    assert after.allows_another_step()
    after.budget = 9.0
    assert not after.allows_another_step()  # also though it has made no step itself
    time.seconds += 3600  # a slept laptop is known by the longest step of the earlier part
    after.step()
    assert after.used == pytest.approx(9.5)
