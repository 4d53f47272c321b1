"""The files beside the vocabulary name added and special tokens, and say what begins a prompt."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.system.small_files import read_json_file
from pipeline.text.added_tokens import FLAGS, NO_ID, AddedToken, Declared

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
_FIRST = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """The part that matters here of `tokenizer_config.json` and its older companions; absent keys are None or empty.

    `special_tokens` are texts by the names that chat templates know, "bos_token" and the like.
    """

    bos_token: str | None
    add_bos_token: bool | None
    declared: Declared
    special_tokens: Mapping[str, str]
    chat_template: object


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read `tokenizer_config.json` of a checkpoint folder, which need not have one.

    Its older companions count where it has no `added_tokens_decoder`, as in transformers. Raises CheckpointError for
    what is declared as a token and is none.
    """
    document = _read(folder / TOKENIZER_CONFIG)
    complete = "added_tokens_decoder" in document
    older = {} if complete else _read(folder / SPECIAL_TOKENS_MAP)
    named = _named(document) | {
        name: token
        for name, token in _named(older, all_special=True).items()
        if name in _FIRST or not isinstance(document.get(name), str)
    }
    extra = _extra(document) or _extra(older, all_special=True)
    if complete:
        decoder = document["added_tokens_decoder"] or {}
        with_ids = [_token(TOKENIZER_CONFIG, one, token_id=_id(TOKENIZER_CONFIG, key)) for key, one in decoder.items()]
    else:
        with_ids = _with_ids(_read(folder / ADDED_TOKENS), document, older)
    add_bos_token = document.get("add_bos_token")
    if not isinstance(add_bos_token, bool | None):
        raise CheckpointError(f"{folder / TOKENIZER_CONFIG}: add_bos_token: need true or false, have {add_bos_token!r}")
    return TokenizerConfig(
        bos_token=named["bos_token"].content if "bos_token" in named else None,
        add_bos_token=add_bos_token,
        declared=Declared(
            with_ids=tuple(with_ids),
            complete=complete,
            named=tuple(named[name] for name in dict.fromkeys((*_FIRST, *named)) if name in named),
            extra=tuple(extra),
        ),
        special_tokens={name: token.content for name, token in named.items()},
        chat_template=document.get("chat_template"),
    )


def _read(path: Path) -> dict[str, Any]:
    return read_json_file(path) if os.path.lexists(path) else {}


def _with_ids(ids: Mapping[str, Any], document: Mapping[str, Any], older: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens of `added_tokens.json`, which are special where they are named, or listed by their text alone."""
    texts = [
        older[name]["content"] if isinstance(older.get(name), dict) else older.get(name, document.get(name))
        for name in _FIRST
    ]
    special = {text for text in (*texts, *_list(document)) if isinstance(text, str)}
    return [
        AddedToken(
            content=content,
            token_id=_id(ADDED_TOKENS, token_id),
            special=content in special,
            normalized=content not in special,
        )
        for content, token_id in ids.items()
    ]


def _named(document: Mapping[str, Any], all_special: bool = False) -> dict[str, AddedToken]:
    """The tokens under names, like "eos_token" and "image_token", each of which is special."""
    named = {key: value for key, value in document.items() if key.endswith("_token") and isinstance(value, str | dict)}
    if isinstance(more := document.get("extra_special_tokens"), dict):
        named |= more
    return {name: replace(_token(name, value, all_special), special=True) for name, value in named.items()}


def _extra(document: Mapping[str, Any], all_special: bool = False) -> list[AddedToken]:
    """The tokens in a list."""
    return [_token("extra_special_tokens", value, all_special) for value in _list(document)]


def _list(document: Mapping[str, Any]) -> list[object]:
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(value := document.get(key), list) and value:
            return value
    return []


def _token(where: str, value: object, all_special: bool = False, token_id: int = NO_ID) -> AddedToken:
    """A token that is its text, or an object with flags; what is not said is said as transformers says it."""
    if isinstance(value, str):
        return AddedToken(content=value, token_id=token_id)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f"{where}: need the text of a token, or an object with its content, have {value!r:.200}")
    flags = {flag: value.get(flag, False) for flag in FLAGS}
    flags["special"] = flags["special"] or all_special
    flags["normalized"] = value.get("normalized")
    if wrong := [flag for flag in FLAGS if not isinstance(flags[flag], bool | None)]:
        raise CheckpointError(f"{where}: token {value['content'][:80]!r}: {wrong[0]}: need true or false")
    return AddedToken(content=value["content"], token_id=token_id, **flags)


def _id(where: str, value: object) -> int:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    raise CheckpointError(f"{where}: need the id of a token, have {value!r:.200}")
