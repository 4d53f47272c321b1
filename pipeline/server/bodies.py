"""What clients send: the fields of OpenAI's API that are honoured here, and those that vLLM has added to them."""

import logging
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from pipeline.errors import shown
from pipeline.server.errors import ApiError

logger = logging.getLogger("penstock")
MOST_FIELDS = 1000
MOST_COMMAS, MOST_CONTAINERS = 1 << 20, 1 << 18
"""Of values, and of members, lists and objects among them: while a body is decoded nothing else is, and as many take
some 50 ms. They are counted before, in texts too, of which no context holds so many."""
MOST_TOLD, LONGEST_TOLD = 100, 64
"""So many names of unknown fields, of so many characters, are logged: clients may invent any number of them."""
WITHOUT_EFFECT = frozenset(
    (
        *("user", "metadata", "safety_identifier", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    )
)
"""Fields that say who asks, or how an answer may be made faster: no text depends on them."""
NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "prompt_embeds": (),
    "audio": (),
    "modalities": (["text"],),
    "moderation": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "include_stop_str_in_output": (False,),
    "include_reasoning": (True,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "chat_template": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
}
"""Fields that would change the answer, and cannot: each with the values that ask for nothing, beside null."""

_MISSING = re.compile(r"required field `(\w+)`")
_PLACE = re.compile(r" - at (?:`key` in )?`\$(?:\.(\w+))?[^`]*`$")
_told: set[str] = set()


class StreamOptions(Struct):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None


class Body(Struct, kw_only=True):
    """What both kinds of requests may say; null counts as not said."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    response_format: dict[str, Any] | None = None
    priority: int | None = None
    cache_scope: str | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return self.stream_options is not None and self.stream_options.include_usage is True


class CompletionBody(Body, kw_only=True):
    """What /v1/completions gets."""

    prompt: str | list[int | str | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None


class ChatBody(Body, kw_only=True):
    """What /v1/chat/completions gets."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None


AnyBody = TypeVar("AnyBody", bound=Struct)


def has_too_many_values(data: bytes) -> bool:
    """Whether decoding it would take too long."""
    return data.count(b",") > MOST_COMMAS or sum(map(data.count, b":[{")) > MOST_CONTAINERS


def decode(kind: type[AnyBody], data: bytes) -> AnyBody:
    """Return the body that `data` holds. An unknown field is logged, once for all requests.

    Raises ApiError for what is no JSON object, for a field of a wrong type, and for one that would change the answer
    and cannot.
    """
    if has_too_many_values(data):
        most = f"{MOST_COMMAS} commas, and {MOST_CONTAINERS} colons and opening brackets"
        raise ApiError(400, f"need a body of at most {most}, have more; send several requests")
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if len(fields) > MOST_FIELDS:
            raise ApiError(400, f"need a body of at most {MOST_FIELDS} fields, have {len(fields)}")
        for name in fields.keys() - set(kind.__struct_fields__):
            _look_at(name, fields[name])
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"need a body that is a JSON object: {error}") from None


def _look_at(name: str, value: msgspec.Raw) -> None:
    """Refuse a field that cannot be honoured, and log one that is not known."""
    if name in NOT_HONOURED:
        given, neutral = msgspec.json.decode(value), NOT_HONOURED[name]
        if given is not None and given not in neutral:
            instead = f", or give {' or '.join(map(repr, neutral))}" if neutral else ""
            raise not_supported(name, f"is not supported; leave it out{instead}")
    elif name not in WITHOUT_EFFECT and name not in _told and len(_told) < MOST_TOLD:
        _told.add(name[:LONGEST_TOLD])
        logger.warning("requests have the field %s, which is not known and has no effect", shown(name[:LONGEST_TOLD]))


def not_supported(param: str, what: str) -> ApiError:
    """A field, or a value of it, that cannot be honoured."""
    return ApiError(400, f"{param}: {what}", param=param, code="unsupported_value")


def _wrong(message: str) -> ApiError:
    """Say where a value of a wrong type stands, and what is needed there."""
    if missing := _MISSING.search(message):
        return ApiError(400, f"{missing[1]}: need it, have none", param=missing[1])
    place = _PLACE.search(message)
    param = place[1] if place else None
    what = message.replace("Expected", "need").replace("got", "have").replace("`", "")
    return ApiError(400, f"{param}: {what}" if param else what, param=param)
