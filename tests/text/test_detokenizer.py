from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.text.detokenizer import ByteFallbackDetokenizer, ByteLevelDetokenizer, Detokenizer

SINGLE_BYTES = {value: bytes([value]) for value in range(256)}
FALLBACK: dict[int, str | bytes] = {**SINGLE_BYTES, 256: " a", 257: " ", 258: "世界", 259: ""}


def streamed(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@settings(deadline=None, max_examples=500)
@given(data=st.binary(max_size=24) | st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_one_by_one_give_what_they_give_together(data: bytes) -> None:
    assert "".join(streamed(ByteLevelDetokenizer(SINGLE_BYTES), [*data])) == data.decode("utf-8", "replace")


@given(text=st.text(max_size=12))
def test_a_character_comes_whole_with_its_last_byte(text: str) -> None:
    detokenizer = ByteLevelDetokenizer(SINGLE_BYTES)
    for character in text:
        *first, last = character.encode()
        assert [detokenizer.push(value) for value in first] == [""] * len(first)
        assert detokenizer.push(last) == character
    assert detokenizer.flush() == ""


def test_replacement_characters_come_as_soon_as_bytes_are_truly_invalid_or_at_the_end() -> None:
    assert streamed(ByteLevelDetokenizer(SINGLE_BYTES), [0xE4, 0xB8, ord("x"), 0xFF, 0xE4, 0xB8]) == [
        *("", "", "\ufffdx", "\ufffd", "", ""),
        "\ufffd",
    ]


def test_ids_without_a_piece_leave_an_unfinished_character_alone() -> None:
    assert streamed(ByteLevelDetokenizer(SINGLE_BYTES), [0xE4, 999, 0xB8, 0x96]) == ["", "", "", "世", ""]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([256, 256], ["a", " a", ""]),
        ([257, 256], ["", " a", ""]),
        ([259, 999, 256], ["", "", "a", ""]),
        ([32, 256], ["", " a", ""]),
        ([0xE4, 0xB8, 0x96, 258], ["", "", "", "世世界", ""]),
        ([0xE4, 999, 0xB8, 259, 0x96], ["", "", "", "", "", "世"]),
        ([258, 0xE4, 0xB8, 0x96, 0xFF, 256], ["世界", "", "", "", "", "\ufffd" * 4 + " a", ""]),
        ([0xE4, 0xB8], ["", "", "\ufffd" * 2]),
    ],
)
def test_byte_fallback_holds_a_run_of_bytes_until_it_ends(ids: list[int], expected: list[str]) -> None:
    assert streamed(ByteFallbackDetokenizer(FALLBACK, strip_first_space=True), ids) == expected


def test_the_first_space_stays_where_the_decoder_does_not_strip_it() -> None:
    assert streamed(ByteFallbackDetokenizer(FALLBACK, strip_first_space=False), [256, 256]) == [" a", " a", ""]


STRIPPED = partial(ByteFallbackDetokenizer, FALLBACK, True)


@pytest.mark.parametrize(
    ("prompt", "ids", "expected"),
    [
        ([256], [256], [" a", ""]),
        ([256, 999, 259], [256], [" a", ""]),
        ([999, 259], [256], ["a", ""]),
        ([32], [256], [" a", ""]),
        ([256, 0xE4, 0xB8], [0x96, 256], ["", "世 a", ""]),
        ([256, 0xE4, 0xB8, 999], [256], ["\ufffd\ufffd a", ""]),
        ([256, 0xE4, 0xB8, 0x96], [256], [" a", ""]),
        ([256, 0xE4, 0xB8, 0x96], [0xE4, 0xB8, 0x96], ["", "", "", "世"]),
        ([0xE4, 0xB8, 0x96, 0xE4], [0xB8, 0x96, 256], ["", "", "世 a", ""]),
    ],
)
def test_what_follows_a_prompt_goes_on_where_its_text_ends(
    prompt: list[int], ids: list[int], expected: list[str]
) -> None:
    assert streamed(STRIPPED(prompt), ids) == expected


def test_a_character_that_the_prompt_begins_is_completed() -> None:
    assert streamed(ByteLevelDetokenizer(SINGLE_BYTES, [*"世".encode(), 0xE4, 999, 0xB8]), [0x96, 97]) == [
        "世",
        "a",
        "",
    ]
    assert streamed(ByteLevelDetokenizer(SINGLE_BYTES, [*"a😀".encode()]), [97]) == ["a", ""]


def test_a_prompt_of_any_length_costs_what_its_end_costs() -> None:
    class Counted(dict[int, bytes]):
        looked_up = 0

        def get(self, key: int, default: bytes = b"") -> bytes:  # type: ignore[override]
            self.looked_up += 1
            return super().get(key, default)

    pieces = Counted({**SINGLE_BYTES, 256: b" word"})
    assert streamed(ByteLevelDetokenizer(pieces, [256] * 100_000), [97]) == ["a", ""]
    assert pieces.looked_up < 10
