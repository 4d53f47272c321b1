"""/tokenize, /detokenize and /tokenizer_info, with the fields of vLLM and of llama.cpp."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline.server.bodies import decode
from pipeline.server.door import read_body
from pipeline.server.errors import ApiError
from pipeline.server.operations import as_json
from pipeline.server.served import served_of
from pipeline.text.chat_templates import DEFAULT

Made = TypeVar("Made")
MOST_IDS = 1 << 20


class TokenizeBody(msgspec.Struct):
    """A text as `prompt` or `content`, or the messages of a chat.

    Special tokens such as BOS are added to a `prompt`, and to a `content` where it is asked for.
    """

    prompt: str | None = None
    content: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None


class DetokenizeBody(msgspec.Struct):
    """Token ids."""

    tokens: list[int]


async def tokenize(request: Request) -> Response:
    """The token ids of a text, or of a chat as its template writes it."""
    body, served = decode(TokenizeBody, await read_body(request)), served_of(request)
    model = served.model
    text = body.prompt if body.prompt is not None else body.content
    if (text is None) == (body.messages is None):
        raise ApiError(400, "need prompt, content or messages, one of them", param="prompt")
    if body.messages is not None:
        ids = await model.chat_ids(body.messages, tools=body.tools, chat_template=served.options.template)
    else:
        asked = body.add_special_tokens if body.add_special_tokens is not None else body.add_special
        special = body.content is None if asked is None else asked
        ids = await on_a_thread(
            request, len(text or ""), lambda: model.tokenizer.encode(text or "", add_special_tokens=special)
        )
    return as_json({"tokens": ids, "count": len(ids), "max_model_len": model.runtime.context_tokens})


async def detokenize(request: Request) -> Response:
    """The text of token ids, without special tokens."""
    body = decode(DetokenizeBody, await read_body(request))
    if len(body.tokens) > MOST_IDS:
        raise ApiError(400, f"tokens: need at most {MOST_IDS} token ids, have {len(body.tokens)}", param="tokens")
    model = served_of(request).model
    text = await on_a_thread(request, len(body.tokens), lambda: model.tokenizer.decode(body.tokens))
    return as_json({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """The special tokens and the chat template, with which lm-eval makes prompts without the files of the tokenizer."""
    served = served_of(request)
    model = served.model
    templates, eos_ids = model.tokenizer.chat_templates, model.runtime.config.eos_ids
    eos = {"eos_token": model.tokenizer.token_bytes(eos_ids[0]).decode(errors="replace")} if eos_ids else {}
    template = served.options.template or templates.named.get(DEFAULT)
    return as_json({"bos_token": None, **eos, **templates.special_tokens, "chat_template": template})


async def on_a_thread(request: Request, length: int, work: Callable[[], Made]) -> Made:
    """Return what `work` makes, on one of the threads that make prompts of texts."""
    admission = served_of(request).model.runtime.admission
    return await admission.tokenized(lambda tokenizing: tokenizing.run(length, work))
