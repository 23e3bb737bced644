from __future__ import annotations

from app.engine.fair_queue import MAX_IDLE_COUNTERS, FairQueue
from app.engine.sequence import Sequence
from tests.support.segments import make_sequence


def serve(queue: FairQueue, num_times: int) -> list[str]:
    """Flows in the order in which their sequences are served, each for its tokens."""
    served = []
    for _ in range(num_times):
        sequence = queue.peek()
        queue.remove(sequence)
        queue.charge(sequence.flow, sequence.num_tokens)
        served.append(sequence.flow)
    return served


def push(queue: FairQueue, flow: str, num_times: int = 1, num_tokens: int = 10) -> list[Sequence]:
    sequences = [make_sequence(num_tokens, flow=flow) for _ in range(num_times)]
    for sequence in sequences:
        queue.push(sequence)
    return sequences


def test_within_a_flow_the_first_goes_first() -> None:
    queue = FairQueue()
    sequences = push(queue, "a", 5)
    found = []
    while len(queue):
        found.append(queue.peek())
        queue.remove(found[-1])
    assert found == sequences


def test_a_flood_of_one_flow_leaves_the_other_its_half() -> None:
    queue = FairQueue()
    push(queue, "flood", 1000)
    push(queue, "calm", 20)
    assert serve(queue, 40).count("calm") == 20


def test_shares_are_counted_in_tokens_not_requests() -> None:
    queue = FairQueue()
    push(queue, "long", 100, num_tokens=90)
    push(queue, "short", 1000, num_tokens=10)
    served = serve(queue, 500)
    assert 0.9 < served.count("long") * 90 / (served.count("short") * 10) < 1.1


def test_a_flow_that_was_idle_gets_no_credit_for_it() -> None:
    queue = FairQueue()
    push(queue, "early", 200)
    serve(queue, 100)
    push(queue, "late", 100)
    assert 9 <= serve(queue, 20).count("late") <= 11


def test_a_flow_that_was_alone_is_not_made_to_wait_for_having_been_served() -> None:
    queue = FairQueue()
    # never more than one waits, so the queue is empty whenever the other flow comes
    for _ in range(500):
        push(queue, "busy")
        serve(queue, 1)
    push(queue, "new", 50)
    push(queue, "busy", 50)
    assert 9 <= serve(queue, 20).count("busy") <= 11


def test_a_preempted_sequence_goes_before_the_others_of_its_flow() -> None:
    queue = FairQueue()
    push(queue, "a", 3)
    preempted = make_sequence(flow="a")
    queue.push_front(preempted)
    assert queue.peek() is preempted


def test_counts_and_tokens_follow_every_change() -> None:
    queue = FairQueue()
    first, second = push(queue, "a", 2, num_tokens=7)
    third = push(queue, "b", num_tokens=5)[0]
    assert (len(queue), queue.num_tokens, set(queue)) == (3, 19, {first, second, third})
    queue.remove(second)
    assert (len(queue), queue.num_tokens) == (2, 12)
    queue.remove(third)
    queue.push_front(third)
    queue.remove(first)
    queue.remove(third)
    assert (len(queue), queue.num_tokens, list(queue)) == (0, 0, [])


def test_names_of_flows_do_not_pile_up() -> None:
    queue = FairQueue()
    for i in range(2 * MAX_IDLE_COUNTERS):
        push(queue, f"flow-{i}")
        serve(queue, 1)
    assert queue.num_counters <= MAX_IDLE_COUNTERS + 2
