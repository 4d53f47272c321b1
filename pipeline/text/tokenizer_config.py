"""What `tokenizer_config.json` says beside the vocabulary: added tokens, and what begins a prompt."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedToken:
    """A token that is matched in the text before it is split.

    A special one has no text of its own when decoded. A `normalized` one is looked for after normalization.
    """

    content: str
    token_id: int
    special: bool = True
    normalized: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """The keys of `tokenizer_config.json` that matter here; absent ones are None or empty."""

    bos_token: str | None
    add_bos_token: bool | None
    added_tokens: tuple[AddedToken, ...]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError that names the file and the place where it is broken."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); fetch the file again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: need a JSON object, have {type(document).__name__}; fetch the file again")
    return document


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read `tokenizer_config.json` of a checkpoint folder, which need not have one."""
    path = folder / "tokenizer_config.json"
    document = read_json(path) if path.exists() else {}
    bos_token = document.get("bos_token")
    return TokenizerConfig(
        bos_token=bos_token["content"] if isinstance(bos_token, dict) else bos_token,
        add_bos_token=document.get("add_bos_token"),
        added_tokens=tuple(
            AddedToken(content=token["content"], token_id=int(token_id), special=token.get("special", False))
            for token_id, token in document.get("added_tokens_decoder", {}).items()
        ),
    )
