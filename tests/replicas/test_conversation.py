"""What is seen of a request where its replica is chosen, and what replicas say of themselves in one document."""

import json

from pipeline.replicas.conversation import FIRST_CHARACTERS, FIRST_MESSAGES, conversation_of
from pipeline.replicas.merged_metrics import merged_metrics

SYSTEM, FIRST = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}
LATER = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And then?"}]


def named(key: str | None = None, **body: object) -> str:
    return conversation_of(json.dumps(body).encode(), key)


def test_later_turns_begin_as_the_first_and_other_chats_do_not() -> None:
    first = named(messages=[SYSTEM, FIRST])
    assert named(messages=[SYSTEM, FIRST, *LATER], max_tokens=3) == first
    assert named(messages=[SYSTEM, {**FIRST, "content": "Hallo"}]) != first
    assert named(messages=[{**SYSTEM, "content": "Be long."}, FIRST]) != first
    assert named(messages=[SYSTEM, *LATER]) != first
    many = [SYSTEM] * FIRST_MESSAGES
    assert named(messages=[*many, FIRST]) == named(messages=[*many, SYSTEM]) != first


def test_texts_count_as_far_as_their_first_characters() -> None:
    text = "x" * (FIRST_CHARACTERS + 100)
    assert named(prompt=text) == named(prompt=text + "y") != named(prompt="y" + text)
    assert named(prompt=[1, 2, 3]) != named(prompt=[1, 2, 4])


def test_callers_that_share_no_blocks_and_names_of_the_caller_count() -> None:
    assert len({named(prompt="x"), named("key", prompt="x"), named(prompt="x", cache_scope="mine")}) == 3
    assert named(prompt="x", prompt_cache_key="talk") == named(prompt="y", prompt_cache_key="talk") != named(prompt="x")


def test_what_cannot_be_read_has_no_beginning() -> None:
    for body in (b"", b"{", b"[]", b'{"messages": 3}', b'{"messages": [{"role": 1}]}', b'{"model": "small"}'):
        assert conversation_of(body, None) == ""
    for hostile in (b'{"prompt": ' + b"[" * 100_000, b'{"prompt": "x", "messages": [' + b"{}," * 300_000 + b"{}]}"):
        assert conversation_of(hostile, None) == ""
    for scope in (b"\\ud800", b"\xed\xa0\x80"):
        assert conversation_of(b'{"prompt": "x", "cache_scope": "' + scope + b'"}', None) == ""


def test_figures_of_replicas_stand_side_by_side() -> None:
    document = "# HELP a:tokens_total Tokens.\n# TYPE a:tokens_total counter\na:tokens_total 3.0\n"
    document += '# HELP a:held Slots.\n# TYPE a:held gauge\na:held{place="host"} 2.0\n'
    merged = merged_metrics({"one": document, "two": document.replace("3.0", "4.0")}).decode()
    assert merged.splitlines() == [
        *("# HELP a:tokens_total Tokens.", "# TYPE a:tokens_total counter"),
        *('a:tokens_total{replica="one"} 3.0', 'a:tokens_total{replica="two"} 4.0'),
        *("# HELP a:held Slots.", "# TYPE a:held gauge"),
        *('a:held{place="host",replica="one"} 2.0', 'a:held{place="host",replica="two"} 2.0'),
    ]
