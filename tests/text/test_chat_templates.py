"""Chats become the texts, and the token ids, that transformers makes of them."""

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import transformers
from support.cases import EVERYTHING
from support.conversations import TEMPLATES, random_chat
from text import small_tokenizers as small

from pipeline.errors import CheckpointError, PenstockError, RequestError
from pipeline.text import template_sandbox
from pipeline.text.chat import MOST_VALUES, Chat, ChatOptions
from pipeline.text.chat_templates import NO_TEMPLATES
from pipeline.text.tokenizer import Tokenizer, load_tokenizer

CHATS = 500 if EVERYTHING else 25
CONTINUE = "continue_final_message"
USER = [{"role": "user", "content": "Hi"}]
NAMED = {
    "bos_token": "<|begin|>",
    "eos_token": {"__type": "AddedToken", "content": "<|end|>"},
    "extra_special_tokens": {"image_token": "<|end|>s"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts BOS before a text, and what its special tokens are called."""
    folder = tmp_path_factory.mktemp("chat")
    small.save(small.llama3(), folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMED))
    return folder


def both(folder: Path) -> tuple[Tokenizer, Any]:
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return load_tokenizer(folder, reference.vocab_size + 100), reference


def test_forty_templates_render_random_chats_as_transformers_does(folder: Path) -> None:
    """Text, ids, and whether it fails: 500 chats each with PENSTOCK_TESTS=all, else 25."""
    assert len(TEMPLATES) >= 40
    ours, reference = both(folder)
    ended = {"rendered": 0, "refused": 0}
    for name, template in TEMPLATES.items():
        random, rendered = Random(name), 0
        for number in range(CHATS):
            chat = random_chat(random)
            want = expected(reference, template, chat)
            have = rendering(ours, template, chat)
            assert have[0] == want[0], (name, number, chat, have, want)
            if isinstance(want[1], Exception):
                same = str(want[1]) in str(have[1])
                assert same or (chat[CONTINUE] and str(have[1]).startswith(CONTINUE)), (name, have, want)
                ended["refused"] += 1
            else:
                assert have[1] == want[1], (name, number, chat)
                rendered += 1
        assert rendered > CHATS // 5, name
        ended["rendered"] += rendered
    assert min(ended.values()) > CHATS * len(TEMPLATES) // 5, ended


def rendering(tokenizer: Tokenizer, template: str, chat: dict[str, Any]) -> tuple[bool, Any]:
    options = ChatOptions(
        tools=chat["tools"],
        documents=chat["documents"],
        chat_template=template,
        chat_template_kwargs=chat["variables"],
        continue_final_message=chat["continue_final_message"],
    )
    try:
        text = Chat(chat["messages"], options, tokenizer.chat_templates).render(1 << 20)
    except PenstockError as error:
        return False, error
    return True, text


def expected(reference: Any, template: str, chat: dict[str, Any]) -> tuple[bool, Any]:
    continued = chat["continue_final_message"]
    options = {"continue_final_message": continued, "add_generation_prompt": not continued}
    given = {"tools": chat["tools"], "documents": chat["documents"], "chat_template": template, **chat["variables"]}
    try:
        return True, reference.apply_chat_template(chat["messages"], tokenize=False, **given, **options)
    except Exception as error:
        return False, error


ASKED = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ image_token }}{% endfor %}"
NAMES = [{"name": "default", "template": "no tools"}, {"name": "tool_use", "template": "tools {{ tools | tojson }}"}]


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"chat_template": ASKED}, {}),
        ({"chat_template": NAMES}, {}),
        ({"chat_template": NAMES[1:]}, {}),
        ({"chat_template": [{"name": "default", "template": ASKED}]}, {}),
        ({"chat_template": "not this one"}, {"chat_template.jinja": ASKED + "\n\r\n  {# Größe #}\n"}),
        ({}, {"chat_template.jinja": ASKED, "additional_chat_templates/tool_use.jinja": "tools"}),
        ({"chat_template": ASKED}, {"additional_chat_templates/rag.jinja": "documents"}),
        ({"chat_template": None}, {}),
    ],
)
def test_the_template_and_the_ids_are_those_of_transformers(
    folder: Path, tmp_path: Path, config: dict[str, Any], files: dict[str, str]
) -> None:
    """Also where the tokenizer puts a BOS token before other texts: a chat has the one of its template, or none."""
    for name, text in {"tokenizer.json": (folder / "tokenizer.json").read_text(), **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, newline="")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(NAMED | config))
    ours, reference = both(tmp_path)
    assert ours.encode("a")[:1] == ours.encode("<|begin|>"), "a BOS token before texts"
    for tools, chosen in ((None, None), ([{"name": "f"}], None), (None, "tool_use"), (None, "{{ eos_token }}")):
        try:
            want = reference.apply_chat_template(
                USER, tools=tools, chat_template=chosen, add_generation_prompt=True, return_dict=False
            )
        except ValueError:
            with pytest.raises(RequestError, match="need a chat template"):
                Chat(USER, ChatOptions(tools=tools, chat_template=chosen), ours.chat_templates)
            continue
        chat = Chat(USER, ChatOptions(tools=tools, chat_template=chosen), ours.chat_templates)
        assert list(ours.chat_ids(chat.render(1000))) == want


@pytest.mark.parametrize("value", [5, [ASKED], [{"name": "default"}], {"default": 5}, [{"name": 1, "template": "a"}]])
def test_what_is_no_template_is_refused_when_the_folder_is_read(folder: Path, tmp_path: Path, value: object) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template: need a text, or a list of obj"):
        load_tokenizer(tmp_path, 1000)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: need UTF-8 text, have byte 0xff at offset 0"):
        load_tokenizer(tmp_path, 1000)


class Dumped:
    def model_dump(self) -> dict[str, Any]:
        return {"role": "user", "content": "Hi", "refusal": None}


@pytest.mark.parametrize(
    ("messages", "options", "says"),
    [
        ("Hi", {}, "messages: need a list of messages, have str; a text alone is continued by generate"),
        ({"role": "user"}, {}, "messages: need a list of messages, have dict$"),
        ([], {}, "messages: need at least one, have none"),
        (["Hi"], {}, r"messages\[0\]: need an object with role and content; have 'Hi'"),
        ([{"content": "Hi"}], {}, r"messages\[0\]\.role: need a text, such as system, user or assistant; have None"),
        (
            [*USER, {"role": "user"}],
            {},
            r"messages\[1\]\.content: need a text, or a list of parts",
        ),
        ([{"role": "user", "content": 5}], {}, r"\.content: need a text, or a list of parts with text; have 5"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            {},
            r"content\[0\]: need a part of the type 'text'",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, r"content\[0\]\.text: need a text; have None"),
        ([{"role": "user", "content": "a", "x": {1: 2}}], {}, r"messages\[0\]\.x: need texts as keys; have 1"),
        ([{"role": "user", "content": "a", "x": b"b"}], {}, r"\.x: need texts, numbers, lists and objects, have bytes"),
        ([{"role": "user", "content": "a", "x": [0] * MOST_VALUES}], {}, "need at most 100000 values in all of a chat"),
        ([{"role": "tool", "content": json.loads("[" * 99 + "]" * 99)}], {}, "need at most 32 lists and objects in"),
        (USER, {"tools": {"name": "f"}}, "tools: need a list of objects; have {'name': 'f'}"),
        (USER, {"tools": [print]}, "tools: need a list of objects; have"),
        (USER, {"documents": ["a"]}, r"documents: need a list of objects; have \['a'\]"),
        (
            USER,
            {"chat_template": ""},
            "chat_template: need the text of a template, of 1 to 1048576 char",
        ),
        (USER, {"chat_template_kwargs": [1]}, r"chat_template_kwargs: need an object of variables by their names; hav"),
        (USER, {"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs: messages is set by the call itself"),
        (USER, {"continue_final_message": "content"}, "continue_final_message: need true or false; have 'content'"),
        (
            [{"role": "tool", "content": {}}],
            {"continue_final_message": True},
            "message has no text to continue",
        ),
    ],
)
def test_messages_and_options_are_checked_at_the_call(messages: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        Chat(messages, ChatOptions(**{"chat_template": "a", **options}), NO_TEMPLATES)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for %}", "chat_template: line 1 is in no chat template: Expected .*; correct it"),
        ("a\n{{ raise_exception('not so') }}", "chat_template: the chat template stops at line 2: not so$"),
        ("{{ a.b.c }}", "stops at line 1: UndefinedError: 'a' is undefined"),
        ("{% set r = range(9999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", "more than 20000 steps"),
        ("{% macro m(n) %}{% for i in [1, 2] %}{{ m(n) }}{% endfor %}{% endmacro %}{{ m(1) }}", "steps|Recursion"),
        (
            "{% macro m(n) %}{% if n %}{{ m(n-1) ~ m(n-1) }}{% endif %}{% endmacro %}{{ m(40) }}",
            "more than 20000 steps",
        ),
        ("{% for i in range(2000) %}{{ 'text' }}{% endfor %}", "it makes a text of more than 5000 characters"),
        ("{{ 9 ** 999999999 }}", "it computes a number that is too large"),
        ("{% set ns = namespace(x=9) %}{% for i in range(50) %}{% set ns.x = ns.x * ns.x %}{% endfor %}", "too large"),
        ("{{ 99999999 * 'a' }}", "it repeats a text to more than 1048576 characters"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ namespace(_a=1) }}", "SecurityError: a namespace has no name with an underscore"),
        ("{{ dict.__class__ }}{{ dict.mro() }}", "(Security|Undefined)Error"),
    ],
)
def test_a_template_can_neither_run_for_ever_nor_leave_its_sandbox(
    template: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, "MOST_STEPS", 20_000)
    chat = Chat(USER, ChatOptions(chat_template=template), NO_TEMPLATES)
    with pytest.raises(RequestError, match=says):
        chat.render(5000)


def test_objects_that_dump_themselves_are_messages_and_the_caller_s_are_not_changed() -> None:
    given = [Dumped(), {"role": "assistant", "content": [{"type": "text", "text": "Yes, "}], "thinking": "Hm"}]
    options = ChatOptions(
        chat_template="{% for m in messages %}{{ m | tojson }}{% endfor %}", continue_final_message=True
    )
    text = Chat(given, options, NO_TEMPLATES).render(1000)
    assert re.fullmatch(r'\{"role": "user", "content": "Hi"\}\{.*"text": "Yes, ', text), text
    assert given[1] == {"role": "assistant", "content": [{"type": "text", "text": "Yes, "}], "thinking": "Hm"}
