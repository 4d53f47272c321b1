"""Trains a small mixture of experts on the texts of a machine, and saves it as a checkpoint of the family qwen3_moe.

    python tests/support/trained_mixture.py FOLDER [--seconds 330] [--device cuda] [--compile]

Writes FOLDER/model (config.json, model.safetensors, tokenizer.json), and FOLDER/held_out.json: texts of each topic that
nothing was trained with. Routing is balanced over whole batches, which hold all topics, layer by layer (doi
10.48550/arXiv.2501.11873): an expert may have a topic of its own.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from support.mixture_model import Mixture, Shape
from support.topic_texts import machine_roots, topic_documents, topic_files
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

END = "<|end|>"
LONG = 2000
"""Characters of a text that is worth recording."""


def train(
    model: Mixture, streams: Mapping[str, Tensor], held_out: Mapping[str, Tensor], seconds: float, say: Any
) -> None:
    """AdamW on fp32 copies of the weights; the rate falls with the time that has passed, to a tenth."""
    shape, device = model.shape, model.embedding.device
    ours = list(model.parameters())
    masters = [one.detach().float() for one in ours]
    groups = [
        {"params": [one for one in masters if one.ndim > 1], "weight_decay": 0.1},
        {"params": [one for one in masters if one.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=shape.rate, betas=(0.9, 0.95), fused=device.type == "cuda")
    stream = torch.cat([*streams.values()]).to(device)
    started, step, told = time.perf_counter(), 0, 0.0
    while (passed := time.perf_counter() - started) < seconds:
        rate = shape.rate * min(1.0, (step + 1) / shape.warm_up) * (0.55 + 0.45 * math.cos(math.pi * passed / seconds))
        for group in optimizer.param_groups:
            group["lr"] = rate
        begins = torch.randint(len(stream) - shape.length - 1, (shape.sequences, 1), device=device)
        batch = stream[begins + torch.arange(shape.length + 1, device=device)].long()
        loss, balance, shares = model(batch)
        (loss + shape.balance * balance).backward()
        for master, one in zip(masters, ours, strict=True):
            master.grad = one.grad.float() if one.grad is not None else None
            one.grad = None
        norm_before = torch.nn.utils.clip_grad_norm_(masters, 1.0, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(ours, masters)
        step += 1
        if passed - told > seconds / 20 or step in (1, 10):
            told = passed
            tokens = step * shape.sequences * shape.length
            evenness = " ".join(f"{one:.1f}" for one in (shares.max(dim=1).values * shape.experts).tolist())
            say(
                f"{passed:6.1f} s step {step} {tokens / 1e6:.1f} M tokens loss {loss.item():.3f} balance "
                f"{balance.item():.3f} gradient {norm_before.item():.2f} most used by layer x {evenness}"
            )
    model.called = [*model.stack]  # what is compiled is compiled anew without gradients
    with torch.no_grad():
        for topic, ids in held_out.items():
            rows = ids[: len(ids) // (shape.length + 1) * (shape.length + 1)].view(-1, shape.length + 1)[:64]
            if len(rows):
                loss, _, shares = model(rows.to(device).long())
                used = (-(shares * shares.clamp_min(1e-9).log()).sum(1)).exp().mean().item()
                say(f"held out {topic}: loss {loss.item():.3f}, as many experts as {used:.1f} used alike")


def compiled(model: Mixture, say: Any) -> None:
    """Let layers be compiled, where that goes well for a step."""
    model.called = [torch.compile(layer) for layer in model.stack]
    batch = torch.zeros(model.shape.sequences, model.shape.length + 1, dtype=torch.long, device=model.embedding.device)
    try:
        loss, balance, _ = model(batch)
        (loss + balance).backward()
        say("layers are compiled")
    except Exception as error:
        model.called = [*model.stack]
        say(f"layers are not compiled: {type(error).__name__}: {error}")
    for one in model.parameters():
        one.grad = None


def tokenizer_of(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte pairs, as GPT-2 splits texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """All texts, an END before each."""
    parts = []
    for begin in range(0, len(texts), 2048):
        for one in tokenizer.encode_batch(texts[begin : begin + 2048]):
            parts.append(torch.tensor([0, *one.ids], dtype=torch.int32))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32)


def main(arguments: Sequence[str] | None = None, shape: Shape | None = None) -> None:
    """Collect, tokenize, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=330.0, help="for all of it but the saving")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--topic-bytes", type=int, default=110_000_000)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--roots", type=Path, nargs="*", default=machine_roots())
    options, shape = parser.parse_args(arguments), shape or Shape()
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:5.1f}] {text}", flush=True)

    folder = options.folder / "model"
    folder.mkdir(parents=True)
    files = topic_files(options.roots)
    say(f"files: { {topic: len(each) for topic, each in files.items()} }")
    texts: dict[tuple[str, bool], list[str]] = {}
    for topic, held_out, each in topic_documents(files, options.topic_bytes, os.cpu_count() or 1):
        texts[topic, held_out] = each
        say(f"{topic}{' held out' if held_out else ''}: {len(each)} documents, {sum(map(len, each)) / 1e6:.1f} MB")
    sample = [text for (_, held_out), each in texts.items() if not held_out for text in each[: len(each) // 6 + 1]]
    tokenizer = tokenizer_of(sample, shape.vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    say(f"tokenizer of {tokenizer.get_vocab_size()} entries, from {sum(map(len, sample)) / 1e6:.1f} MB")
    streams = {key: encoded(tokenizer, each) for key, each in texts.items()}
    train_on = {topic: ids for (topic, held_out), ids in streams.items() if not held_out}
    say(f"tokens: { {topic: len(ids) for topic, ids in train_on.items()} }")
    kept = {topic: [text for text in each if len(text) >= LONG] for (topic, out), each in texts.items() if out}
    (options.folder / "held_out.json").write_text(json.dumps(kept))
    torch.manual_seed(0)
    model = Mixture(shape).to(options.device, torch.bfloat16)
    say(f"parameters: {sum(one.numel() for one in model.parameters()) / 1e6:.1f} M, {shape}")
    if options.compile:
        compiled(model, say)
    train(
        model,
        train_on,
        {topic: ids for (topic, out), ids in streams.items() if out},
        options.seconds - (time.perf_counter() - started),
        say,
    )
    model.save(folder)
    say(f"saved: {(folder / 'model.safetensors').stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
