"""`Model.chat` answers as `generate` answers the text that the template makes."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline import CheckpointError, ClosedError, Model, RequestError
from pipeline.system.hub_cache import BUNDLED

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}# {{ m.role }}\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}"
    "# {{ name or 'assistant' }}\n{% endif %}"
)
CHAT = [{"role": "system", "content": "Write Python."}, {"role": "user", "content": "import os"}]
TEXT = "# system\nWrite Python.\n# user\nimport os\n# assistant\n"


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator[Model]:
    shutil.copytree(BUNDLED, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    async with Model.open(tmp_path / "model", device="cpu") as model:
        yield model


async def test_a_chat_is_answered_as_the_text_of_its_template(model: Model) -> None:
    """Whose BOS token is the only one; in one piece, in samples, in a stream, and going on with the last message."""
    want = await model.generate(TEXT, max_new_tokens=6)
    assert list(want.prompt_token_ids) == model.tokenizer.encode("<|begin_of_text|>" + TEXT), "one BOS token alike"
    assert await model.chat(CHAT, max_new_tokens=6) == want
    assert await model.chat_ids(CHAT) == list(want.prompt_token_ids)
    assert await model.chat(CHAT, n=2, max_new_tokens=6) == [want, want]
    chunks = [chunk async for chunk in model.stream_chat(CHAT, max_tokens=6, n=2)]
    assert ["".join(chunk.text for chunk in chunks if chunk.index == index) for index in (0, 1)] == [want.text] * 2
    begun = [*CHAT, {"role": "assistant", "content": "import"}]
    going_on = await model.chat(begun, continue_final_message=True, max_new_tokens=1)
    assert list(going_on.prompt_token_ids) == model.tokenizer.encode(TEXT + "import")
    named = await model.chat(CHAT, chat_template_kwargs={"name": "bot"}, max_new_tokens=1)
    assert list(named.prompt_token_ids) == model.tokenizer.encode(TEXT.replace("assistant", "bot"))
    not_begun = await model.chat(CHAT, add_generation_prompt=False, max_new_tokens=1)
    assert list(not_begun.prompt_token_ids) == model.tokenizer.encode(TEXT.rpartition("# ")[0])
    assert await model.chat_prompt(CHAT) == await model.chat_prompt(CHAT, tools=[]) == "<|begin_of_text|>" + TEXT
    assert model.tool_format() is None
    assert model.tool_format("<tool_call>").name == "hermes"
    other = await model.chat(CHAT, chat_template="{{ messages[1].content }}", max_new_tokens=1)
    assert list(other.prompt_token_ids) == model.tokenizer.encode("import os")[1:], "no BOS token but the template's"


async def test_a_chat_that_cannot_be_answered_says_why_and_others_go_on(model: Model) -> None:
    with pytest.raises(RequestError, match="unknown argument 'tool'; did you mean 'tools'"):
        await model.chat(CHAT, tool=[])  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="unknown argument 'tool'; did you mean 'tools'"):
        await model.chat_ids(CHAT, tool=[])  # type: ignore[call-arg]
    with pytest.raises(RequestError, match=r"messages: need a list of messages"):
        model.stream_chat("import os")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"need room for .* tokens, have 1024"):
        await model.chat([{"role": "user", "content": "import os\n" * 1000}])
    with pytest.raises(RequestError, match="prompt: need at least one token, have none"):
        await model.chat(CHAT, chat_template="{# nothing #}")
    with pytest.raises(RequestError, match="unknown argument 'tools'"):
        await model.generate("import os", tools=[])  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="unknown argument 'tool'; did you mean 'tools'"):
        await model.chat_prompt(CHAT, tool=[])  # type: ignore[call-arg]
    with pytest.raises(RequestError, match="shown_tokens: need a list of names of special tokens; have 'eot'"):
        model.stream_chat(CHAT, shown_tokens="eot")
    assert (await model.chat(CHAT, max_new_tokens=1)).token_ids
    await model.aclose()
    with pytest.raises(ClosedError):
        await model.chat(CHAT)


async def test_without_a_whole_template_only_chats_fail(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    async with Model.open(tmp_path / "model", device="cpu") as model:
        says = r"need a chat template \(chat_template\.jinja, or .* in tokenizer_config\.json\), have none; give the te"
        with pytest.raises(RequestError, match=says):
            await model.chat(CHAT)
    (tmp_path / "model" / "chat_template.jinja").write_text("a\n{% if %}")
    async with Model.open(tmp_path / "model", device="cpu") as model:
        with pytest.raises(CheckpointError, match=r"chat_template\.jinja: line 2 is in no chat template"):
            await model.chat(CHAT)
        assert (await model.generate(TEXT, max_new_tokens=1)).token_ids
    (tmp_path / "model" / "tokenizer.model").unlink()
    async with Model.open(tmp_path / "model", device="cpu") as model:
        with pytest.raises(RequestError, match="messages: chat needs a tokenizer, and the folder has none"):
            model.stream_chat(CHAT)


async def test_a_conversation_goes_on_from_the_tokens_that_were_drawn(model: Model) -> None:
    """Not from those that its text is cut into, of which no KV blocks are found."""
    drawn = await model.chat(CHAT, temperature=1.5, seed=3, max_new_tokens=60, cache_scope="a")
    earlier_ids = [*drawn.prompt_token_ids, *drawn.token_ids]
    more = [*CHAT, {"role": "assistant", "content": drawn.text}, {"role": "user", "content": "import re"}]
    cached = [
        (await model.chat(more, earlier_ids=ids, cache_scope="a", max_new_tokens=1)).cached_tokens
        for ids in (earlier_ids, None)
    ]
    assert cached[0] == (len(earlier_ids) - 1) // 16 * 16
    assert cached[1] < cached[0] - 16
