"""What `tokenizer_config.json` says beside the vocabulary: added tokens, and what begins a prompt."""

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.small_files import CONFIG_LIMIT_BYTES, read_json_file


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


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read `tokenizer_config.json` of a checkpoint folder, which need not have one."""
    path = folder / "tokenizer_config.json"
    document = read_json_file(path, CONFIG_LIMIT_BYTES) if os.path.lexists(path) else {}
    bos_token = document.get("bos_token")
    return TokenizerConfig(
        bos_token=bos_token["content"] if isinstance(bos_token, dict) else bos_token,
        add_bos_token=document.get("add_bos_token"),
        added_tokens=tuple(
            AddedToken(content=token["content"], token_id=int(token_id), special=token.get("special", False))
            for token_id, token in document.get("added_tokens_decoder", {}).items()
        ),
    )
