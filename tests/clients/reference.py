"""What transformers says of the documents that lm-eval asks the server about."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline.generation.folder import read_tokenizer
from pipeline.text.tokenizer import Tokenizer

NEW_TOKENS = 12
DOCUMENTS = [
    ("import os\nimport ", ["sys\n", "socket\n", "zebra\n"], 0),
    ("class Stack:\n    def __init__", ["(self):\n", "(x, y):\n", " = None\n"], 0),
    ("def fibonacci(n):\n", ["    return n\n", "    pass\n", '    """Docstring."""\n'], 2),
    ("for index, value in ", ["enumerate(values):\n", "range(10):\n"], 0),
    ("try:\n    value = int(text)\nexcept ", ["ValueError:\n", "KeyError as error:\n"], 0),
    ("# Text that is no code, with accents: caf", ["\u00e9\n", "e\n"], 0),
]


def write_lines(path: Path) -> None:
    """Write the documents as lm-eval's json data set reads them."""
    documents = [
        {"begin": begin, "choices": choices, "answer": answer, "whole": begin + choices[answer]}
        for begin, choices, answer in DOCUMENTS
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in documents))


def write_reference(folder: Path, path: Path) -> None:
    """Write what transformers, in fp32, says of each document of the model in a folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = read_tokenizer(folder, model.config.vocab_size)
    if tokenizer is None:
        raise SystemExit(f"{folder}: has no tokenizer")
    says: dict[str, Any] = {"choices": [], "rolling": [], "until": []}
    for begin, choices, answer in DOCUMENTS:
        says["choices"].append([_pair(model, tokenizer, begin, choice) for choice in choices])
        ids = _ids(tokenizer, begin + choices[answer])
        says["rolling"].append(_likelihood(model, [model.config.bos_token_id], ids))
        says["until"].append(_until(model, tokenizer, begin))
    path.write_text(json.dumps(says))


def _pair(model: Any, tokenizer: Tokenizer, begin: str, choice: str) -> dict[str, Any]:
    """As lm-eval 0.4 cuts a pair: spaces at the end of the beginning belong to the choice.

    Where a token of both together spans the cut, it scores what follows that token, behind the beginning alone.
    """
    spaces = len(begin) - len(begin.rstrip())
    if spaces:
        begin, choice = begin[:-spaces], begin[-spaces:] + choice
    known = _ids(tokenizer, begin)
    return _likelihood(model, known, _ids(tokenizer, begin + choice)[len(known) :])


@torch.inference_mode()
def _likelihood(model: Any, known: list[int], ids: list[int]) -> dict[str, Any]:
    logits = model(torch.tensor([[*known, *ids]])).logits[0, len(known) - 1 : -1].float()
    chosen = torch.tensor(ids)
    odds = torch.log_softmax(logits, -1)[torch.arange(len(ids)), chosen]
    return {"sum": float(odds.sum()), "tokens": len(ids), "greedy": bool((logits.argmax(-1) == chosen).all())}


@torch.inference_mode()
def _until(model: Any, tokenizer: Tokenizer, begin: str) -> str:
    """The text up to the first newline; lm-eval sends the ids of the text alone, without a BOS token."""
    ids = _ids(tokenizer, begin)
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(ids) :].tolist()
    return tokenizer.decode(out).split("\n")[0]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """As lm-eval asks the server for them: without a BOS token."""
    return tokenizer.encode(text, add_special_tokens=False)
