"""Which requests begin alike, as far as it shows without a tokenizer: they go to the replica that has computed it."""

import hashlib

import msgspec
from msgspec import Raw, Struct

from pipeline.server.bodies import has_too_many_values

FIRST_CHARACTERS = 1024
"""So much of a prompt that is no chat counts. It is one beginning in all turns of a talk that is sent as text, from the
turn on where it is as long, and longer than most instructions that stand before other texts."""
FIRST_MESSAGES = 16
"""So many are looked at for the first one of a user: while they are, no other request passes the gate."""


class _Message(Struct):
    role: str = ""


class _Asked(Struct):
    messages: list[Raw] = []
    prompt: Raw = Raw(b"")
    prompt_cache_key: str | None = None
    cache_scope: str | None = None


def conversation_of(body: bytes, key: str | None) -> str:
    """A name for the beginning of what a request asks, or "" where it has none that can be read.

    A chat begins with all up to the first message of its user, which later turns send again; `prompt_cache_key`, by
    which OpenAI's clients say what begins alike, takes its place. `key` is the API key of the caller, where keys
    are asked for: callers that share no KV blocks are no reason to share a replica.
    """
    if has_too_many_values(body):
        return ""
    try:
        asked = msgspec.json.decode(body, type=_Asked)
        begins = [asked.prompt_cache_key.encode()] if asked.prompt_cache_key else _beginning(asked)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    if not any(begins):
        return ""
    named = hashlib.sha256()
    for part in (key or "", asked.cache_scope or ""):
        named.update(part.encode() + b"\n")
    for begin in begins:
        named.update(begin)
    return named.hexdigest()


def _beginning(asked: _Asked) -> list[bytes]:
    begins = [bytes(asked.prompt)[:FIRST_CHARACTERS]]
    for message in asked.messages[:FIRST_MESSAGES]:
        begins.append(bytes(message))
        if msgspec.json.decode(message, type=_Message).role == "user":
            break
    return begins
