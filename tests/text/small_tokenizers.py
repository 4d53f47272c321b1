"""Small tokenizers, trained here and now with the `tokenizers` package, in the styles of real checkpoints."""

import base64
import functools
import inspect
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.models.qwen3_5 import tokenization_qwen3_5 as transformers_qwen3_5

from pipeline.text import split_patterns
from pipeline.text.byte_level import ALPHABET

TEXTS = [
    inspect.getsource(random)[:6000],
    "Hello, world!  It's 2026; WE'LL see, they'Ve said 1234567 times... don't you?\r\n\r\n\tEnd.   \n  x",
    "Ünïcödé naïve Straße ŒUVRE e\u0301 q\u0323\u0307 \u212b ﬁ Ǆ \u017f İ \u0131 ½ x² Ⅷ",
    "ΑΒΓ мир Привет, как дела? שלום عليكم ١٢٣ ४५६",
    "こんにちは世界。漢字かな交じり文、中文也可以\uff0c한국어도 됩니다。 𠮷野家 \u3000全角 \uff11\uff12\uff13",
    "😀😃👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪 ☕️ a😀b \x00\x01\x7f\u0085\u200b\u200d\ufeff\ufffd\u2028\u2029\U0010ffff",
    " " * 40 + "a" + "\n" * 9 + " \n \t\t \r\n  b" + "\u00a0\u2003 " + "^" * 50 + "-" * 70 + "=" * 31 + "aaaa" * 40,
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } // O(n)\n\tif x == None:\n\t\treturn {'k': [1, 2, 3]}\n",
]
NAMED_TOKENS = ["<|begin|>", "<|end|>", "<|end|>s", "<|begin|><|end|>"]
Build = Callable[[], tokenizers.Tokenizer]


def _train(tokenizer: tokenizers.Tokenizer, size: int = 700, special: Sequence[str] = ()) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)


def _byte_level(pre_tokenizer: Any, normalizer: Any = None, special: Sequence[str] = ()) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    _train(tokenizer, special=special)
    return tokenizer


def split(pattern: str) -> Any:
    """The pre-tokenizer of Llama 3, Qwen and Mistral: split by `pattern`, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _bos_template(tokenizer: tokenizers.Tokenizer, single: str) -> Any:
    named = [(token, tokenizer.token_to_id(token)) for token in NAMED_TOKENS if token in single.split()]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=named)


@functools.cache
def gpt2() -> tokenizers.Tokenizer:
    """GPT-2: its own pattern, special token inside the vocabulary with the lowest id, so that ids are not ranks."""
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), special=["<|begin|>"])
    tokenizer.add_tokens([AddedToken("<|end|>", normalized=True), AddedToken("|><|", normalized=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


@functools.cache
def llama3() -> tokenizers.Tokenizer:
    """Llama 3: ignore_merges, every split of a token listed as a merge, BOS by a template."""
    tokenizer = _byte_level(split(split_patterns.LLAMA3))
    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    ranks = {token: rank for rank, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))}
    document["model"]["merges"] = [
        [token[:at], token[at:]]
        for token in ranks
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    document["model"]["ignore_merges"] = True
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
    tokenizer.add_special_tokens(NAMED_TOKENS)
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _bos_template(tokenizer, "<|begin|> $A")]
    )
    return tokenizer


@functools.cache
def qwen2() -> tokenizers.Tokenizer:
    """Qwen 2: NFC, no BOS, special tokens, and tokens that are not special but not normalized either, or normalized."""
    tokenizer = _byte_level(split(split_patterns.QWEN2), normalizers.NFC())
    tokenizer.add_special_tokens(NAMED_TOKENS)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("e\u0301q", normalized=False)])
    tokenizer.add_tokens([AddedToken("naïve", normalized=True), AddedToken("<tool> x", normalized=True)])
    return tokenizer


@functools.cache
def qwen3_5() -> tokenizers.Tokenizer:
    """Qwen 3.5: combining marks are letters."""
    tokenizer = _byte_level(split(transformers_qwen3_5.PRETOKENIZE_REGEX), normalizers.NFC())
    tokenizer.add_special_tokens(NAMED_TOKENS)
    return tokenizer


@functools.cache
def smollm() -> tokenizers.Tokenizer:
    """SmolLM: every digit a word, special tokens first in the vocabulary, text between two special tokens."""
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = _byte_level(pre_tokenizers.Sequence(steps), special=NAMED_TOKENS)
    tokenizer.post_processor = _bos_template(tokenizer, "<|begin|> $A <|end|>")
    return tokenizer


@functools.cache
def mistral() -> tokenizers.Tokenizer:
    """Mistral Nemo: the tekken pattern, and one letter of the alphabet that is a special token too."""
    tokenizer = _byte_level(split(split_patterns.MISTRAL))
    tokenizer.add_special_tokens([*NAMED_TOKENS, "~"])
    tokenizer.post_processor = _bos_template(tokenizer, "<|begin|> $A")
    return tokenizer


@functools.cache
def llama2() -> tokenizers.Tokenizer:
    """Llama 2: SentencePiece style, spaces as U+2581, bytes where the vocabulary lacks a character, BOS."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", *NAMED_TOKENS, *byte_tokens], show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(
        ["Hello world, this is all ASCII text. " * 3, "for i in range(10): print(i)"], trainer
    )
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [
        token for token in document["added_tokens"] if not token["content"].startswith("<0x")
    ]  # bytes are plain vocabulary
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
    tokenizer.add_tokens([AddedToken("<tool▁call>", normalized=False)])
    tokenizer.post_processor = _bos_template(tokenizer, "<|begin|> $A")
    return tokenizer


@functools.cache
def phi3() -> tokenizers.Tokenizer:
    """Phi 3: that of Llama 2, with a token that takes the space behind it along, which only the package can."""
    tokenizer = tokenizers.Tokenizer.from_str(llama2().to_str())
    tokenizer.add_special_tokens([AddedToken("<|user|>", rstrip=True, normalized=False)])
    return tokenizer


def _sentence_pieces(train_on: Sequence[str], **parts: Any) -> tokenizers.Tokenizer:
    """A vocabulary with tokens for bytes, trained after the steps in `parts`."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    for part, step in parts.items():
        setattr(tokenizer, part, step)
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", *NAMED_TOKENS, *byte_tokens], show_progress=False, max_token_length=16
    )
    tokenizer.train_from_iterator(train_on, trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [one for one in document["added_tokens"] if not one["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(document))


@functools.cache
def mistral7() -> tokenizers.Tokenizer:
    """Mistral 7B, version 3: a space before the first word, words that no token goes beyond, few letters of others."""
    tokenizer = _sentence_pieces(
        [*TEXTS[:3], TEXTS[4]],
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=True),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
    document = json.loads(tokenizer.to_str())
    document["pre_tokenizer"]["split"] = False  # as it is written: no token goes beyond a word all the same
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
    tokenizer.post_processor = _bos_template(tokenizer, "<|begin|> $A")
    return tokenizer


@functools.cache
def gemma() -> tokenizers.Tokenizer:
    """Gemma: nothing before the first word, tokens of several words, a split at spaces of which none is left."""
    tokenizer = _sentence_pieces(
        TEXTS,
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("naïve x", normalized=True)])
    tokenizer.post_processor = _bos_template(tokenizer, "<|begin|> $A")
    return tokenizer


def save(tokenizer: tokenizers.Tokenizer, folder: Path, **tokenizer_config: Any) -> Path:
    """Write `tokenizer.json` and, if given keys for it, `tokenizer_config.json`; return the folder."""
    return save_document(json.loads(tokenizer.to_str()), folder, **tokenizer_config)


def save_document(document: dict[str, Any], folder: Path, **tokenizer_config: Any) -> Path:
    """The same for a `tokenizer.json` that was parsed and changed."""
    (folder / "tokenizer.json").write_text(json.dumps(document))
    if tokenizer_config:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def ranked_words(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of every token of a byte-level tokenizer in the order of the ids, as a tiktoken vocabulary has them."""
    values = {letter: value for value, letter in enumerate(ALPHABET)}
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return [bytes(map(values.__getitem__, token)) for token in sorted(vocabulary, key=vocabulary.__getitem__)]


def save_rank_file(ranked: Sequence[bytes], folder: Path, **tokenizer_config: Any) -> Path:
    """Write `tokenizer.model` in tiktoken's format; return the folder."""
    lines = [base64.b64encode(word) + b" %d\n" % rank for rank, word in enumerate(ranked)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    if tokenizer_config:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder
