"""Answers keep to a JSON schema, a regular expression or a grammar, and end where it ends."""

import asyncio
import json
import re
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from support.json_schemas import allows, fits, random_schema
from text import small_tokenizers as small

from pipeline import Model, RequestError
from pipeline.generation import grammar
from pipeline.generation.grammar import Grammars
from pipeline.generation.response_format import GrammarSource
from pipeline.system.hub_cache import BUNDLED
from pipeline.text.chat import Chat, ChatOptions
from pipeline.text.chat_templates import NO_TEMPLATES
from pipeline.text.tokenizer import Tokenizer, load_tokenizer

COMPACT = {" ": -100.0, "\n": -100.0}
"""The model likes to indent, which takes tokens."""
NEVER = {"type": "regex", "regex": "[0-9]{500}"}
CODE = {"type": "regex", "regex": "[0-9]{3}-[xyz]"}


def schema(of: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": of}}


async def test_answers_at_random_fit_random_schemas_the_same_on_all_devices() -> None:
    """Many in one pass, each with its own schema; also where a pass fails and is computed anew."""
    random = Random(21)
    schemas = [random_schema(random) for _ in range(12)]
    texts = []
    for device in ("cpu", "cpu-copy"):
        async with Model.open(device=device) as model:
            bias = {model.tokenizer.encode(text)[-1]: number for text, number in COMPACT.items()}
            arguments: Any = {"temperature": 1.0, "max_new_tokens": 40, "logit_bias": bias}
            if device == "cpu-copy":
                failed = _failing_once(model)
            asked = [schema(one) for one in schemas]
            outputs = await asyncio.gather(
                *(model.generate("x = ", seed=seed, response_format=one, **arguments) for seed, one in enumerate(asked))
            )
        texts.append([output.text for output in outputs])
    assert failed, "a pass failed"
    assert texts[0] == texts[1]
    ended = [output.finish_reason for output in outputs]
    assert ended.count("stop") >= 9
    for text, reason, one in zip(texts[0], ended, schemas, strict=True):
        assert reason == "length" or fits(json.loads(text), one), (text, one)


def _failing_once(model: Model) -> list[int]:
    """Let the computation of a later pass fail."""
    passes: list[int] = []
    step = model.runtime.section.step

    def failing(pass_: Any, message: Any) -> Any:
        if model.runtime.program.passes == 5 and not passes:
            passes.append(5)
            raise ValueError("a kernel failed")
        return step(pass_, message)

    model.runtime.section.step = failing  # type: ignore[method-assign]
    return passes


async def test_an_answer_ends_where_nothing_may_follow_and_a_sample_keeps_to_it_alone() -> None:
    async with Model.open(device="cpu") as model:
        arguments: Any = {"temperature": 1.0, "response_format": CODE, "max_new_tokens": 20, "ignore_eos": True}
        plain = await model.generate("x = ", max_new_tokens=4)
        three, free = await asyncio.gather(
            model.generate("x = ", n=3, seed=5, **arguments), model.generate("x = ", max_new_tokens=4)
        )
        assert free == plain
        assert len({output.text for output in three}) > 1
        for output in three:
            assert re.fullmatch(CODE["regex"], output.text)
            assert output.finish_reason == "stop"
        assert (await model.generate("x = ", stop=["-"], **arguments)).text.isdigit()
        answer = await model.generate("x = ", response_format={"type": "text"}, max_new_tokens=4)
        assert answer.text == plain.text
        running = asyncio.ensure_future(model.generate("x = ", response_format=NEVER, max_new_tokens=500))
        chunks = model.stream("x = ", response_format=NEVER, max_new_tokens=500)
        assert (await anext(chunks)).text.isdigit()
        await chunks.aclose()
        running.cancel()
        await model.generate("x = ", max_new_tokens=1)
        assert model.runtime.admission.batcher.running == 0
        object_ = await model.generate("x = ", response_format={"type": "json_object"}, temperature=1.0, seed=3)
        assert object_.finish_reason == "length" or isinstance(json.loads(object_.text), dict)


async def test_what_cannot_be_kept_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Model.open(device="cpu") as model:
        for wrong, says in (
            ("json", "response_format: need an object with a type; have 'json'"),
            (
                {"type": "xml"},
                "response_format.type: need text, json_object, json_schema, regex or grammar; have 'xml'",
            ),
            ({"type": "json_schema"}, r'response_format.json_schema: need an object with a "schema"; have None'),
            (schema(True), "response_format.json_schema.schema: need an object; have True"),
            (schema({"enum": [float("nan")]}), "response_format.json_schema.schema: need a JSON schema"),
            (schema({"enum": ["a" * 70_000]}), "need at most 65536 characters; have one of 70014 characters"),
            (schema({"allOf": [{"pattern": "a"}] * 9}), "need at most 8 of pattern and format beside allOf; have 9"),
            ({"type": "regex", "regex": ""}, "response_format.regex: need a text of 1 to 65536 characters; have ''"),
        ):
            with pytest.raises(RequestError, match=re.escape(says).replace(r"\ ", " ")):
                model.stream("x", response_format=wrong)
        for wrong, says in (
            (schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
            (schema({"x-guidance": {"lenient": True}, "not": {}}), 'Unimplemented keys: ["not"]'),
            (schema({"type": "string", "format": "weird"}), "Unknown format: weird"),
            (schema({"$ref": "http://127.0.0.1/x"}), "retrieving it failed"),
            ({"type": "regex", "regex": "(?=a)"}, "regex parse error"),
            ({"type": "grammar", "grammar": "start: x"}, 'unknown name: "x"'),
        ):
            for _ in range(2):
                with pytest.raises(RequestError, match=re.escape("response_format: ") + ".*" + re.escape(says)):
                    await model.generate("x", response_format=wrong)
        with pytest.raises(RequestError, match="response_format: cannot be kept where forced_eos_token_id says"):
            model.stream("x", response_format=CODE, forced_eos_token_id=1)
        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(RequestError, match=r"not installed: pip install llguidance"):
            model.stream("x", response_format=CODE)
        assert model.runtime.program.passes == 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(BUNDLED, 4096)


async def test_what_takes_too_long_to_compile_delays_nobody(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "LONGEST_COMPILING_SECONDS", 0.2)
    monkeypatch.setattr(Grammars, "_compile", lambda self, _, source, thought: time.sleep(0.5))
    grammars, source = Grammars(4096, [4095]), GrammarSource("regex", "a")
    waits = [grammars.states(tokenizer, source, None, 1) for _ in range(2)]
    began = time.monotonic()
    turn = asyncio.ensure_future(asyncio.sleep(0.01))
    ended = await asyncio.gather(*waits, return_exceptions=True)
    assert turn.done()
    assert time.monotonic() - began < 0.45
    for error in ended:
        assert isinstance(error, RequestError)
        assert "compiling the grammar takes more than 0.2 seconds; ask for less" in str(error)
    assert ended[0] is not ended[1]


@pytest.mark.parametrize("name", ["llama2", "qwen2"])
async def test_what_must_come_is_spelled_whatever_a_tokenizer_makes_of_texts(name: str, tmp_path: Path) -> None:
    """Llama 2 begins them with a space, Qwen 2 composes letters, and names of special tokens are these."""
    made = getattr(small, name)()
    tokenizer, size = load_tokenizer(small.save(made, tmp_path), made.get_vocab_size()), made.get_vocab_size()
    for text in ("abc", "a<|begin|>b", "e\u0301 na\u00efve \u212b"):
        source = GrammarSource("json_schema", json.dumps({"const": text}))
        [state] = await Grammars(size, []).states(tokenizer, source, None, 1)
        spelled = b""
        while not state.complete:
            token_id = int(np.unpackbits(state.allowed(), bitorder="little").argmax())
            state.took(token_id)
            spelled += tokenizer.token_bytes(token_id)
        assert json.loads(spelled) == text


async def test_behind_reasoning_that_the_prompt_has_opened_the_grammar_begins(tokenizer: Tokenizer) -> None:
    """The model may be without an end token, too."""
    for eos_ids in ([4095], []):
        [state] = await Grammars(4096, eos_ids).states(tokenizer, GrammarSource("regex", "[0-9]{2}"), "</think>", 1)
        for token_id in tokenizer.chat_ids("a < b </thin\n</think>\n\n42"):
            assert not state.complete
            assert allows(state, token_id)
            state.took(token_id)
        assert state.complete
    for template, mark in {"{{ '<think>' }}\n": "</think>", "<think></think>": None, "Hi": None}.items():
        chat = Chat([{"role": "user", "content": "Hi"}], ChatOptions(chat_template=template), NO_TEMPLATES)
        assert chat.open_thought(tokenizer, chat.ids(tokenizer)) == mark
