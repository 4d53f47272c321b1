"""How much KV room there is by default: requests that share a pass against weights that stay, on machines made up."""

import dataclasses

import pytest

from pipeline.state.kv_room import SENT_RATE, Demand, PassBytes, choose_room

MEGABYTE = 10**6
TOKEN = 32_768
"""Bytes of KV blocks for each, as a model of 3 GB has them."""
WEIGHTS, WINDOW = 3000 * MEGABYTE, 250 * MEGABYTE
COMPUTED_RATE = 8
USUAL = Demand.of(4096, 64, 512)


@dataclasses.dataclass(frozen=True)
class Machine:
    """So much memory for weights and KV blocks together; weights that move pass through a window in it."""

    memory: int

    def moves(self, tokens: int) -> PassBytes | None:
        left = self.memory - tokens * TOKEN
        if left >= WEIGHTS:
            return PassBytes(0, 0)
        return None if left < WINDOW else PassBytes(WEIGHTS - (left - WINDOW), 0)

    def chosen(self, demand: Demand = USUAL) -> tuple[int, str]:
        return choose_room(demand, WEIGHTS, COMPUTED_RATE, self.moves)


def test_requests_are_taken_for_a_kilotoken_or_a_quarter_of_a_long_context() -> None:
    assert Demand.of(100, 64, 512) == Demand(64, 64, 112, 112)
    assert Demand(64, 64, 4096, 1024) == USUAL
    assert Demand.of(40_000, 64, 16) == Demand(64, 16, 40_000, 10_000)


@pytest.mark.parametrize(
    ("megabytes", "tokens", "says"),
    [
        (24_000, 64 * 4096, "64 requests (max_requests) of a whole context, which is all that can be used; no more"),
        (6_500, 104 * 1024, "64 of 64 requests (max_requests), at 1,664 tokens each; no more weights move for it"),
        (
            3_500,
            19 * 1024,
            "19 of 64 requests (max_requests), at 1,024 tokens each; for that a pass reads 388 MB instead of 0 B",
        ),
        (
            2_700,
            64 * 1024,
            "64 of 64 requests (max_requests), at 1,024 tokens each; for that a pass reads 2.7 GB instead of 684 MB",
        ),
        (
            1_500,
            37 * 1024,
            "37 of 64 requests (max_requests), at 1,024 tokens each; for that a pass reads 2.99 GB instead of 1.88 GB, "
            "which a lower max_requests gives back; memory holds no more",
        ),
        (400, 4096, "one request of a whole context, the least that works; memory holds no more"),
        (300, 4096, "one request of a whole context, the least that works; memory holds no more"),
    ],
)
def test_room_is_what_makes_most_tokens_per_second(megabytes: int, tokens: int, says: str) -> None:
    chosen, why = Machine(megabytes * MEGABYTE).chosen()
    assert chosen == tokens
    assert why.startswith(says)


def test_nobody_gets_what_nobody_can_use() -> None:
    plenty, tight = Machine(24_000 * MEGABYTE), Machine(1_500 * MEGABYTE)
    assert plenty.chosen(Demand.of(4096, 1, 512)) == tight.chosen(Demand.of(4096, 1, 512))
    assert tight.chosen(Demand.of(4096, 1, 512))[0] == 4096
    assert tight.chosen(Demand.of(4096, 64, 8))[0] == 8 * 1024, "a pass carries eight tokens"


@pytest.mark.parametrize("rate", [8, 128])
def test_the_slowest_of_disk_link_and_computing_is_what_a_pass_takes(rate: int) -> None:
    assert PassBytes(7, 7 * SENT_RATE - 1).seconds(0, rate) == 7
    assert PassBytes(7, 8 * SENT_RATE).seconds(0, rate) == 8
    assert PassBytes(7, 0).seconds(9 * rate, rate) == 9


@pytest.mark.parametrize("sent", [0, 100])
def test_blocks_that_would_move_for_nobody_are_not_there(sent: int) -> None:
    """Beyond what typical requests take, room is taken only where nothing more moves for it."""

    def moves(tokens: int) -> PassBytes:
        return PassBytes(WEIGHTS, sent * max(0, tokens - 64 * 1024))

    assert choose_room(USUAL, WEIGHTS, 128, moves)[0] == (64 * 1024 if sent else 64 * 4096)
