"""One request: what each pass must compute, and what each token adds to the text."""

import asyncio
from array import array

import pytest

from pipeline.generation.chunks import Chunk
from pipeline.generation.samples import chunks_of
from pipeline.generation.sampling import Choice, SamplingParameters
from pipeline.generation.sequence import RunningSequence
from pipeline.text.detokenizer import ByteLevelDetokenizer

EOS = 0
SMILE = "😀"
PIECES = {
    1: b"Hello",
    2: b" world",
    3: b"!",
    4: SMILE.encode()[:1],
    5: SMILE.encode()[1:3],
    6: SMILE.encode()[3:],
    7: b"STO",
    8: b"P",
    9: b"Sorry",
    10: b" ST",
    11: b"OP and on",
}


def sequence(
    max_new_tokens: int = 100, stop: tuple[str, ...] = (), detokenizes: bool = True, prompt_ids: tuple[int, ...] = (1,)
) -> RunningSequence:
    parameters = SamplingParameters(max_new_tokens=max_new_tokens, stop=stop)
    detokenizer = ByteLevelDetokenizer(PIECES) if detokenizes else None
    return RunningSequence(array("i", prompt_ids), parameters, frozenset({EOS}), detokenizer, 20)


async def accepted(running: RunningSequence, *token_ids: int) -> list[Chunk]:
    """The chunks of these tokens, the last of which must end the sequence."""
    for token_id in token_ids:
        assert not running.ended
        running.accept(Choice(token_id, None))
    assert running.ended
    async with asyncio.timeout(30):
        return [chunk async for chunk in chunks_of([running])]


def texts(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


async def test_every_token_is_a_chunk_and_the_end_of_text_has_no_text() -> None:
    chunks = await accepted(sequence(), 1, 2, 3, EOS)
    assert [chunk.token_ids for chunk in chunks] == [(1,), (2,), (3,), (EOS,)]
    assert texts(chunks) == ["Hello", " world", "!", ""]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, "stop"]


async def test_a_chunk_is_there_as_soon_as_its_token_is() -> None:
    running = sequence()
    chunks = chunks_of([running])
    for token_id, text in ((1, "Hello"), (2, " world")):
        running.accept(Choice(token_id, {token_id: -0.5, 9: -1.0}))
        chunk = await anext(chunks)
        assert chunk == Chunk(text, (token_id,), None, {token_id: -0.5, 9: -1.0}, prompt_tokens=1)
    waiting = asyncio.ensure_future(anext(chunks))
    await asyncio.sleep(0)
    assert not waiting.done()
    running.accept(Choice(3, None))
    assert (await waiting).text == "!"
    await chunks.aclose()


async def test_a_character_is_held_back_until_it_is_whole() -> None:
    chunks = await accepted(sequence(), 1, 4, 5, 6, EOS)
    assert texts(chunks) == ["Hello", "", "", SMILE, ""]


@pytest.mark.parametrize("last", [EOS, 4], ids=["stop", "length"])
async def test_half_a_character_at_the_end_is_said_to_be_broken(last: int) -> None:
    chunks = await accepted(sequence(max_new_tokens=3), 1, 4, last)
    assert "".join(texts(chunks)) == "Hello" + "\N{REPLACEMENT CHARACTER}" * (1 if last == EOS else 2)
    assert chunks[-1].finish_reason == ("stop" if last == EOS else "length")


async def test_a_stop_string_over_two_tokens_is_cut_off_and_ends_the_text() -> None:
    chunks = await accepted(sequence(stop=("STOP",)), 1, 10, 11)
    assert texts(chunks) == ["Hello", " ", ""]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "stop"]


async def test_text_in_front_of_a_stop_string_comes_in_the_last_chunk() -> None:
    chunks = await accepted(sequence(stop=("world",)), 1, 2)
    assert texts(chunks) == ["Hello", " "]


async def test_what_only_looked_like_a_stop_string_comes_with_the_next_token() -> None:
    chunks = await accepted(sequence(stop=("STOP",)), 7, 9, 7, 8)
    assert texts(chunks) == ["", "STOSorry", "", ""]
    assert chunks[-1].finish_reason == "stop"


async def test_a_stop_string_is_found_across_a_character_that_came_in_parts() -> None:
    chunks = await accepted(sequence(stop=(f"{SMILE}!",)), 1, 4, 5, 6, 3)
    assert texts(chunks) == ["Hello", "", "", "", ""]
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize(("max_new_tokens", "last", "reason"), [(2, 7, "length"), (9, EOS, "stop")])
async def test_text_that_was_held_back_comes_with_the_last_token(max_new_tokens: int, last: int, reason: str) -> None:
    chunks = await accepted(sequence(max_new_tokens, stop=("STOSTOP",)), 7, last)
    assert texts(chunks) == ["", "STOSTO" if last == 7 else "STO"]
    assert chunks[-1].finish_reason == reason


async def test_a_stop_at_the_last_allowed_token_is_a_stop() -> None:
    assert (await accepted(sequence(2), 1, EOS))[-1].finish_reason == "stop"
    assert (await accepted(sequence(2, stop=("world",)), 1, 2))[-1].finish_reason == "stop"
    assert (await accepted(sequence(2), 1, 2))[-1].finish_reason == "length"
    assert (await accepted(sequence(1), 1))[-1] == Chunk("Hello", (1,), "length", prompt_tokens=1)


async def test_without_a_detokenizer_tokens_come_without_text() -> None:
    chunks = await accepted(sequence(3, detokenizes=False), 1, 4, 2)
    assert texts(chunks) == ["", "", ""]
    assert chunks[-1].finish_reason == "length"


async def test_an_error_comes_after_the_chunks_before_it_and_ends_the_stream() -> None:
    running, error = sequence(), OSError("disk")
    running.accept(Choice(1, None))
    running.fail(error)
    assert running.ended
    running.fail(ValueError("a consequence"))
    chunks = chunks_of([running])
    assert (await anext(chunks)).text == "Hello"
    with pytest.raises(OSError, match="disk") as caught:
        await anext(chunks)
    assert caught.value is error
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    assert running._unread.empty(), "only the first error"


async def test_a_finished_request_cannot_fail_any_more() -> None:
    running = sequence(1)
    running.accept(Choice(1, None))
    running.fail(OSError("disk"))
    assert [chunk.finish_reason async for chunk in chunks_of([running])] == ["length"]
    assert running._unread.empty()


def test_a_prompt_longer_than_a_pass_waits_in_parts_then_token_by_token() -> None:
    running = sequence(prompt_ids=tuple(range(1, 12)))
    seen = []
    for _ in range(3):
        tokens = running.waiting_tokens(4)
        assert len(tokens) <= 4
        seen.append((tokens, len(tokens) == running.waiting_count))
        running.cached_tokens += len(tokens)
    assert seen == [((1, 2, 3, 4), False), ((5, 6, 7, 8), False), ((9, 10, 11), True)]
    assert (running.waiting_count, running.waiting_tokens(4)) == (0, ())
    for count, token_id in enumerate((7, 9), start=1):
        running.accept(Choice(token_id, None))
        assert (running.waiting_count, running.waiting_tokens(4)) == (1, (token_id,))
        running.cached_tokens += 1
        assert running.cached_tokens == 11 + count
    assert running.token_ids == [7, 9]
    assert running.prompt_ids == array("i", range(1, 12))
