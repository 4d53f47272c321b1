"""Train the model that Penstock ships: a small Llama on the sources of the Python standard library.

    python examples/bundled_model/train.py --out FOLDER --minutes 5.5 --device cuda

Needs transformers and tokenizers. ``--minutes`` is the time spent in training steps; preparing the text, compiling
and the last measurement come on top.
"""

from __future__ import annotations

import argparse
import math
import platform
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import tiktoken
import torch
import torch.nn.functional as functional
from corpus import collect, measure_compressors
from evaluation import bits_per_byte
from model import TINY, Recipe, add_dropout, build_model, save_model
from model_card import TrainingRecord, write_card
from torch import Tensor
from transformers import LlamaForCausalLM
from vocabulary import (
    BEGIN_OF_TEXT_ID,
    encode_documents,
    load_encoding,
    train_ranks,
    write_tokenizer,
)

MAX_FOLDER_BYTES = 16_000_000
PROGRESS_SECONDS = 2.0
VALIDATION_SECONDS = 30.0
SAMPLE_PROMPT = "class Stack:\n"


def build_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for the embedding and the norms."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    embedding = {"params": [model.model.embed_tokens.weight], "weight_decay": recipe.weight_decay}
    adamw = torch.optim.AdamW(
        [embedding, {"params": norms, "weight_decay": 0.0}], lr=recipe.adamw_lr, betas=(0.9, 0.95), fused=True
    )
    muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="original")
    return [muon, adamw]


def token_windows(tokens: Tensor, recipe: Recipe, seed: int) -> Iterator[Tensor]:
    """Endless batches of (rows, context + 1) ids; each pass over ``tokens`` is cut at a fresh offset and reordered."""
    generator = torch.Generator(tokens.device).manual_seed(seed)
    within = torch.arange(recipe.context + 1, device=tokens.device)
    windows_per_pass = (len(tokens) - recipe.context) // recipe.context - 1
    while True:
        offset = torch.randint(recipe.context, (1,), generator=generator, device=tokens.device)
        order = torch.randperm(windows_per_pass, generator=generator, device=tokens.device)
        starts = offset + order * recipe.context
        for rows in starts.split(recipe.rows_per_step):
            if len(rows) == recipe.rows_per_step:
                yield tokens[rows[:, None] + within]


def learning_rate_factor(progress: float, warm_up: float) -> float:
    """Linear warm-up, then linear decay to zero; ``progress`` is the share of the time that has passed."""
    return max(0.0, min(progress / warm_up, (1 - progress) / (1 - warm_up)))


def next_token_loss(model: LlamaForCausalLM, window: Tensor) -> Tensor:
    logits = model(input_ids=window[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


class Trainer:
    """Runs steps until the time is up; the host waits for the device only to print a progress line."""

    def __init__(self, model: LlamaForCausalLM, tokens: Tensor, recipe: Recipe, seed: int, compile_model: bool) -> None:
        self.model = model
        self.recipe = recipe
        self.optimizers = build_optimizers(model, recipe)
        self.windows = token_windows(tokens, recipe, seed)
        self.loss_function = torch.compile(next_token_loss) if compile_model else next_token_loss
        self.tokens_per_step = recipe.rows_per_step * recipe.context
        self.steps = 0

    def gradient_step(self, factor: float) -> Tensor:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        device_type = self.model.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
            loss = self.loss_function(self.model, next(self.windows))
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def train(self, minutes: float, validate: Iterator[float]) -> None:
        self.model.train()
        self.gradient_step(factor=0.0).item()  # compiles, and changes no weight, before the clock starts
        seconds = 60 * minutes
        started = reported = validated = time.perf_counter()
        reported_steps, losses = 0, []
        while (elapsed := time.perf_counter() - started) < seconds:
            losses.append(self.gradient_step(learning_rate_factor(elapsed / seconds, self.recipe.warm_up)))
            self.steps += 1
            if (now := time.perf_counter()) - reported < PROGRESS_SECONDS:
                continue
            loss = torch.stack(losses).mean().item()
            if not math.isfinite(loss):
                raise SystemExit(f"the loss became {loss} at step {self.steps}: lower the learning rates")
            tokens_per_second = (self.steps - reported_steps) * self.tokens_per_step / (time.perf_counter() - reported)
            print(f"step {self.steps} at {now - started:.0f} s: loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s")
            if now - validated >= VALIDATION_SECONDS:
                print(f"validation: {next(validate):.4f} bits per byte", flush=True)
                validated = time.perf_counter()
            reported, reported_steps, losses = time.perf_counter(), self.steps, []


def validation_rates(model: LlamaForCausalLM, *arguments: object) -> Iterator[float]:
    while True:
        model.eval()
        rate = bits_per_byte(model, *arguments)  # type: ignore[arg-type]
        model.train()
        yield rate


def write_sample(model: LlamaForCausalLM, encoding: tiktoken.Encoding, seed: int) -> str:
    torch.manual_seed(seed)
    prompt = torch.tensor([[BEGIN_OF_TEXT_ID, *encoding.encode_ordinary(SAMPLE_PROMPT)]], device=model.device)
    with torch.no_grad():
        tokens = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=100, do_sample=True, temperature=0.7
        )
    text = encoding.decode([token for token in tokens[0].tolist() if token < BEGIN_OF_TEXT_ID])
    return text.rstrip().replace("```", "'''")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--data", type=Path, help="folder of a Python standard library (default: the running one's)")
    parser.add_argument("--data-version", help="its Python version, for the model card; goes with --data")
    parser.add_argument("--minutes", type=float, default=5.5, help="time spent in training steps")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dropout", type=float, default=Recipe.dropout)
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile (a CPU always does)")
    parser.add_argument("--tiny", action="store_true", help="a toy size, to try the script on a CPU")
    arguments = parser.parse_args()
    if (arguments.data is None) != (arguments.data_version is None):
        parser.error("--data and --data-version go together")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    device = choose_device(arguments.device)
    recipe = replace(TINY if arguments.tiny else Recipe(), dropout=arguments.dropout)
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    arguments.out.mkdir(parents=True, exist_ok=True)

    corpus = collect(arguments.data or Path(sysconfig.get_path("stdlib")))
    print("held out:", *(file.path for file in corpus.held_out))
    compressors = measure_compressors(corpus.held_out)
    print(compressors)
    write_tokenizer(train_ranks(file.text for file in corpus.training), arguments.out)
    encoding = load_encoding(arguments.out)
    training, validation, held_out = (
        encode_documents(encoding, [file.text for file in part])
        for part in (corpus.training, corpus.validation, corpus.held_out)
    )
    tokens = torch.tensor([token for document in training for token in document], device=device)

    model = build_model(recipe).to(device)
    add_dropout(model, recipe.dropout)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokens):,} training tokens", flush=True)
    compile_model = device.type == "cuda" and not arguments.no_compile
    trainer = Trainer(model, tokens, recipe, arguments.seed, compile_model)
    trainer.train(arguments.minutes, validation_rates(model, validation, corpus.validation, recipe.context))

    torch.set_float32_matmul_precision("highest")  # the saved weights are compared and measured in full float32
    loaded = save_model(model, arguments.out)
    print(f"validation: {bits_per_byte(loaded, validation, corpus.validation, recipe.context):.4f} bits per byte")
    rate = bits_per_byte(loaded, held_out, corpus.held_out, recipe.context)
    print(f"held out: {rate:.4f} bits per byte")
    record = TrainingRecord(
        data_version=arguments.data_version or platform.python_version(),
        minutes=arguments.minutes,
        steps=trainer.steps,
        tokens_per_step=trainer.tokens_per_step,
        training_tokens=len(tokens),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        optimizer=optimizer_description(recipe),
        dropout=recipe.dropout,
        seed=arguments.seed,
        torch_version=torch.__version__,
    )
    sample = write_sample(loaded, encoding, arguments.seed)
    write_card(arguments.out, loaded, corpus, record, rate, compressors, sample)
    folder_bytes = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{folder_bytes:,} bytes in the folder")
    if folder_bytes > MAX_FOLDER_BYTES and not arguments.tiny:
        raise SystemExit(f"the folder takes {folder_bytes:,} bytes, more than the {MAX_FOLDER_BYTES:,} allowed")


def choose_device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def optimizer_description(recipe: Recipe) -> str:
    return (
        f"Muon for the layers' matrices (learning rate {recipe.muon_lr}), AdamW for embedding and norms "
        f"({recipe.adamw_lr}); weight decay {recipe.weight_decay}, none on norms; linear warm-up over "
        f"{recipe.warm_up:.0%} of the time, then linear decay to zero; bfloat16 autocast on a GPU"
    )


if __name__ == "__main__":
    main()
