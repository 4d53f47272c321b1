"""Slots of recurrent state: who begins with which snapshot, which are taken, and that every slot comes back."""

import pytest
from support.cached_requests import Machine, compute, request, run

from pipeline.generation.batching import Batcher
from pipeline.state.blocks import BLOCK_TOKENS, BlockPool
from pipeline.state.state_slots import StateSlots


def batcher(*, share_answers: bool = True) -> tuple[Batcher, StateSlots]:
    states = StateSlots(8, 4)
    return Batcher(BlockPool(100), 8, states=states, share_answers=share_answers), states


def test_a_prompt_is_reused_up_to_a_snapshot_and_where_others_have_branched_off_there_is_one_next_time() -> None:
    shared, states = batcher()
    prompts = [[*range(70), *[last] * 30] for last in (7, 8, 9)]
    assert run(shared, *(request(prompt, new_tokens=1) for prompt in prompts)) == [100, 100, 100 - 64]
    assert (states.kept, states.hits) == (4, 1)
    assert run(shared, *map(request, prompts)) == [100 - 96] * 3
    assert run(shared, request(range(69)), request(range(69))) == [69 - 64] * 2


@pytest.mark.parametrize(("share_answers", "known"), [(True, 48), (False, 16)])
def test_of_an_answer_the_newest_snapshot_alone_stays(share_answers: bool, known: int) -> None:
    shared, states = batcher(share_answers=share_answers)
    first = request(range(20), new_tokens=40)
    run(shared, first)
    assert states.kept == 1 + share_answers
    assert run(shared, request([*first.prompt_ids, *first.token_ids, 5], new_tokens=1)) == [60 + 1 - known]


def test_where_states_have_room_for_fewer_than_may_run_the_others_wait_and_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = Batcher(BlockPool(100), 8, states=StateSlots(2, 0))
    requests = [request(range(40), new_tokens=2) for _ in range(3)]
    for one in requests:
        shared.submit(one)
    assert set(compute(shared)) == set(requests[:2])
    compute(shared)
    assert "1 request waits for room for recurrent state: the plan has it for 2 requests, which run" in caplog.text
    assert "with more memory, or with kv_tokens=" in caplog.text, "weights that stay may be too few to give it"
    assert "kv_tokens=1600 to have it for all 8 of max_requests" in caplog.text
    assert set(compute(shared)) == {requests[2]}


def test_a_lost_snapshot_that_a_sequence_is_to_begin_with_goes_to_no_other_before() -> None:
    states = StateSlots(2, 1)
    first = states.take(None)
    kept = states.snapshot(first, b"a", of_answer=False)
    states.computed(first)
    second = states.take(b"a")
    assert second.read == kept
    states.lose(second.read)
    assert not states.knows(b"a")
    assert states.snapshot(first, b"b", of_answer=False) is None, "three slots, all in use"
    states.computed(second)
    assert states.snapshot(first, b"b", of_answer=False) == kept
    states.give_back(first)
    states.give_back(second)
    assert sorted(states._free) == [0, 1, 2]


def walk(machine: Machine, moves: int) -> None:
    """Random requests, passes of a few tokens or many, cancelled and damaged ones, and failures."""
    for _ in range(moves):
        move = machine.draw.random()
        if move < 0.25 and machine.shared.waiting < 5:
            machine.submit(machine.draw.randint(2, 6), most_new=4 * BLOCK_TOKENS)
        elif move < 0.93 and machine.shared.wanted:
            machine.run_pass(machine.draw.choice([1, 4, 20, 200, 200]))
        elif move < 0.97 and machine.requests:
            machine.draw.choice(machine.requests).cancel()
            machine.shared.retire()
        elif move < 0.992:
            machine.lose_state()
        elif move > 0.996:
            machine.shared.restart()
            machine.rows.clear()
            machine.slots.clear()
        machine.check()
    while machine.shared.wanted:
        machine.run_pass(64)
        machine.check()


@pytest.mark.parametrize("snapshots", [0, 1, 2, 6])
def test_none_is_read_after_it_was_given_to_another_and_every_slot_comes_back(snapshots: int) -> None:
    hits = evictions = 0
    for seed in range(6):
        machine = Machine(40, seed, snapshots)
        states = machine.states
        assert states is not None
        walk(machine, 250)
        assert (machine.pool.used, states.used) == (0, 0)
        assert all(one.ended for one in machine.requests)
        states.forget()
        assert sorted(states._free) == list(range(5 + snapshots))
        hits, evictions = hits + states.hits, evictions + states.evictions
    assert min(hits, evictions) > 10
