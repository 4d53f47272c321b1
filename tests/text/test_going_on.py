"""A conversation keeps the ids that an answer was chosen as, as far as its text is the same, and never another text."""

import functools
import tempfile
from array import array
from pathlib import Path

import pytest
from text import small_tokenizers as small

from pipeline.errors import RequestError
from pipeline.text.chat import Chat, ChatOptions
from pipeline.text.chat_templates import ChatTemplates
from pipeline.text.going_on import going_on
from pipeline.text.tokenizer import Tokenizer, load_tokenizer

STYLES = ("gemma", "llama2", "llama3")
BEFORE = "<|begin|>user\nHello, world!<|end|>assistant\n"
BEHIND = "<|end|>user\nMore<|end|>assistant\n"
ANSWER = "this is all text"


@functools.cache
def loaded(style: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        small.save(getattr(small, style)(), Path(folder))
        return load_tokenizer(Path(folder), 1200)


def letters(style: str, text: str) -> "array[int]":
    """The ids of single letters, which no tokenizer makes of it."""
    vocabulary = getattr(small, style)().get_vocab()
    spelt = [one.replace(" ", "Ġ").replace("\n", "Ċ") if style == "llama3" else f"<0x{ord(one):02X}>" for one in text]
    return array("i", [vocabulary[one] for one in spelt])


@pytest.mark.parametrize("style", STYLES)
def test_the_ids_of_an_answer_stay_while_its_text_does(style: str) -> None:
    tokenizer = loaded(style)
    before, behind, end = (tokenizer.chat_ids(text) for text in (BEFORE, BEHIND, "<|end|>"))
    answer, spaces = letters(style, ANSWER), letters(style, "\n\n")
    rendered = tokenizer.chat_ids(BEFORE + ANSWER + BEHIND)
    assert before + answer != rendered[: len(before + answer)], "else nothing is shown"
    assert going_on(tokenizer, before + answer + end, rendered) == before + answer + behind
    assert going_on(tokenizer, before + answer, rendered) == before + answer + behind, "one that was stopped"
    assert going_on(tokenizer, before + answer + spaces + end, rendered) == before + answer + behind, "trimmed"
    for other in ("This is all text", ANSWER + "ual", ANSWER[:9]):
        expected = tokenizer.chat_ids(BEFORE + other + BEHIND)
        assert going_on(tokenizer, before + answer + end, expected) == expected
    goes_on = tokenizer.chat_ids(BEFORE + ANSWER + "\nMore")
    found = going_on(tokenizer, before + answer, goes_on)
    assert tokenizer.decode(found) == tokenizer.decode(goes_on)
    assert found[: len(before + answer)] == before + answer or style == "llama2", "which puts a space before each text"
    for nothing in (array("i"), end, rendered + end):
        assert going_on(tokenizer, nothing, rendered) == rendered
    half = array("i", [letters(style, "t")[0]])
    assert going_on(tokenizer, before + half, rendered)[: len(before)] == before


def test_a_chat_takes_them_and_refuses_what_is_no_id() -> None:
    tokenizer, template = loaded("llama3"), ChatTemplates(named={"default": "<|begin|>{{ messages[0].content }}"})
    earlier = tokenizer.chat_ids("<|begin|>") + letters("llama3", ANSWER)

    def ids(earlier_ids: list[int]) -> list[int]:
        messages = [{"role": "user", "content": f"{ANSWER}<|end|>"}]
        return Chat(messages, ChatOptions(earlier_ids=earlier_ids), template).ids(tokenizer).tolist()

    assert ids(earlier.tolist()) == (earlier + tokenizer.chat_ids("<|end|>")).tolist()
    for wrong in ([1200], ["x"], "x"):
        with pytest.raises(RequestError, match="earlier_ids: need token ids"):
            ids(wrong)  # type: ignore[arg-type]
