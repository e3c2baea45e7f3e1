from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloombee.pipeline.fair import FairQueue


@dataclass(frozen=True)
class Job:
    client: str
    number: int = 0
    priority: int = 0


def _drain(queue: FairQueue[Job], cost: float = 1.0) -> list[Job]:
    return [queue.pop(cost) for _ in range(len(queue))]


def test_a_crowd_of_one_client_holds_up_another_by_one_turn() -> None:
    queue: FairQueue[Job] = FairQueue()
    for number in range(200):
        queue.push(Job("1", number))
    served = [queue.pop(1.0) for _ in range(50)]
    queue.push(Job("2"))
    served += [queue.pop(1.0) for _ in range(3)]
    assert served.index(Job("2")) <= 51


def test_turns_follow_cost() -> None:
    queue: FairQueue[Job] = FairQueue()
    for number in range(30):
        queue.push(Job("1", number))
        queue.push(Job("2", number))
    given_to = {"1": 0, "2": 0}
    for _ in range(30):
        job = queue.peek()
        given_to[job.client] += 1
        queue.pop(3.0 if job.client == "1" else 1.0)
    assert given_to["2"] == pytest.approx(3 * given_to["1"], abs=2)


def test_higher_priority_goes_first() -> None:
    queue: FairQueue[Job] = FairQueue()
    low, high = Job("1"), Job("1", priority=5)
    queue.push(low)
    queue.push(high)
    assert _drain(queue) == [high, low]


def test_absence_saves_up_nothing() -> None:
    queue: FairQueue[Job] = FairQueue()
    queue.push(Job("2"))
    queue.pop(1.0)
    for number in range(100):
        queue.push(Job("1", number))
    for _ in range(50):
        queue.pop(1.0)
    for number in range(100):
        queue.push(Job("2", number))
    clients = [queue.pop(1.0).client for _ in range(20)]
    assert 8 <= clients.count("2") <= 12


def test_removing_and_emptiness() -> None:
    queue: FairQueue[Job] = FairQueue()
    queue.push(Job("1"))
    assert queue.remove(Job("1"))
    assert not queue.remove(Job("1"))
    with pytest.raises(IndexError):
        queue.peek()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40), st.data())
def test_everything_comes_out_once_and_a_clients_own_order_is_kept(jobs: list[tuple[int, int]], data: st.DataObject) -> None:
    queue: FairQueue[Job] = FairQueue()
    pushed = [Job(str(client), number, priority) for number, (client, priority) in enumerate(jobs)]
    for job in pushed:
        queue.push(job)
    removed = [job for job in pushed if data.draw(st.booleans()) and queue.remove(job)]
    out = _drain(queue)
    assert sorted(out + removed, key=lambda job: job.number) == pushed
    for flow in {(job.client, job.priority) for job in out}:
        numbers = [job.number for job in out if (job.client, job.priority) == flow]
        assert numbers == sorted(numbers)


def test_first_passes_over_clients_that_are_left_out() -> None:
    queue: FairQueue[Job] = FairQueue()
    for client, priority in (("a", 1), ("b", 0), ("c", 0)):
        queue.push(Job(client, priority=priority))
    first = queue.first(without=())
    assert first is queue.peek()
    assert first is not None
    assert first.client == "a"
    second = queue.first(without={"a"})
    assert second is not None
    assert second.client == "b"
    assert queue.first(without={"a", "b", "c"}) is None
    assert len(queue) == 3


def test_names_of_clients_that_came_once_are_not_kept_for_ever() -> None:
    """Also while somebody else's crowd waits all along, whose turn never comes."""
    queue: FairQueue[Job] = FairQueue()
    queue.push(Job("crowd", priority=-1))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(20_000):
            queue.push(Job(f"client {number}"))
            queue.pop(1.0 + number % 7)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 0.5e6
    assert len(queue) == 1


def test_who_was_given_more_than_those_that_wait_is_remembered() -> None:
    queue: FairQueue[Job] = FairQueue()
    for number in range(3):
        queue.push(Job("1", number))
    queue.push(Job("2"))
    assert queue.pop(5.0).client == "1"
    assert queue.pop(9.0).client == "2"
    queue.push(Job("2", 1))
    assert [queue.pop(5.0).client for _ in range(3)] == ["1", "2", "1"]
