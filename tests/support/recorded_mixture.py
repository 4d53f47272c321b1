"""Records the routing of a trained mixture on texts that nothing was trained with.

    python tests/support/recorded_mixture.py FOLDER OUT [--device cuda]

FOLDER is that of `trained_mixture.py`. Writes OUT/TOPIC.routing, files of `penstock trace-routing`: texts of a topic
one after the other, each as one prompt, whose routing is that of the same tokens decoded one by one; and
OUT/REQUESTS.routing of so many requests that are answered at once. Prints the rest.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import Model
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.checkpoint_digest import checkpoint_digest
from pipeline.tools.routing.recorded_routing import write_routing
from pipeline.tools.routing.recorder import Recorder
from pipeline.tools.routing.replay_routing import REPLAYED, Wants, replay_routing

SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "ignore_eos": True}
PROMPT_TOKENS = 64
AT_ONCE = {1: 96, 8: 48, 32: 24}
"""Requests at once, and the tokens of each answer."""
SHARE = 3
"""One of so many experts has a slot where requests run at once."""


def watch(model: Model, folder: Path) -> Recorder:
    """Let a recorder hear of every choice from now on."""
    half, line = model.runtime.section.expert_half, model.runtime.expert_line
    assert half is not None
    assert line is not None
    catalog, count = line.room.catalog, line.room.count
    layers = sorted({layer for layer, _ in catalog.order})
    with open_checkpoint(folder) as checkpoint:
        digest = checkpoint_digest(checkpoint)
    recorder = Recorder(folder.name, digest, layers, count // len(layers), catalog.needed_bytes // count)
    half.recorder = recorder
    return recorder


async def record_texts(
    folder: Path, texts: Mapping[str, Sequence[str]], out: Path, device: str, documents: int, tokens: int
) -> None:
    """The routing of the first tokens of some texts of each topic."""
    async with Model.open(folder, device=device, context_tokens=tokens + 8, max_tokens_per_pass=tokens) as model:
        for topic, each in texts.items():
            recorder, started, took = watch(model, folder), time.perf_counter(), 0
            for text in each:
                ids = model.tokenizer.encode(text)[:tokens]
                if len(ids) == tokens:
                    await model.generate(ids, max_new_tokens=1, temperature=0.0, ignore_eos=True)
                    took += 1
                if took == documents:
                    break
            if took:
                write_routing(out / f"{topic}.routing", recorder.recorded())
            print(f"{topic}: {took} texts of {tokens} tokens in {time.perf_counter() - started:.1f} s", flush=True)


def prompts_of(model: Model, texts: Mapping[str, Sequence[str]], requests: int, topic: str | None) -> list[list[int]]:
    """Beginnings of texts, of one topic or in turns of all."""
    topics = [topic] * requests if topic else [sorted(texts)[index % len(texts)] for index in range(requests)]
    taken: defaultdict[str, int] = defaultdict(int)
    prompts = []
    for one in topics:
        each = texts[one]
        prompts.append(model.tokenizer.encode(each[taken[one] % len(each)])[:PROMPT_TOKENS])
        taken[one] += 1
    return prompts


async def answer_at_once(
    folder: Path, texts: Mapping[str, Sequence[str]], out: Path, settings: Mapping[str, Any]
) -> None:
    """Requests at once, of one topic and of all: tokens per second, and bytes read against the replay."""
    most, topic = max(AT_ONCE), max(texts, key=lambda one: len(texts[one]))
    for requests, mixed in ((1, False), (8, False), (8, True), (most, False), (most, True)):
        tokens = AT_ONCE[requests]
        room = PROMPT_TOKENS + tokens + 8
        async with Model.open(folder, max_requests=most, context_tokens=room, **settings) as model:
            recorder = watch(model, folder)
            prompts = prompts_of(model, texts, requests, None if mixed else topic)
            started = time.perf_counter()
            calls = [
                model.generate(one, max_new_tokens=tokens, seed=index, **SAMPLED) for index, one in enumerate(prompts)
            ]
            await asyncio.gather(*calls)
            seconds, said = time.perf_counter() - started, model.statistics().experts
        assert said is not None
        routing = recorder.recorded()
        wants = Wants.of(routing)
        replayed = replay_routing(wants, [*said.slots.values()], REPLAYED["lru"])
        again = int(replayed.misses[0].sum()) * routing.model.expert_bytes
        name = f"{requests}_{'mixed' if mixed else topic}"
        write_routing(out / f"{name}.routing", routing)
        print(
            f"at once {name}: {requests * tokens / seconds:.1f} tokens/s, read {said.bytes_read / 1e6:.1f} MB, "
            f"replayed {again / 1e6:.1f}, decoding reads {replayed.read_per_token:.2f} experts per token",
            flush=True,
        )


async def main() -> None:
    """Record and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.folder / "model"
    texts = json.loads((options.folder / "held_out.json").read_text())
    texts = {topic: each for topic, each in texts.items() if each}
    await record_texts(folder, texts, options.out, options.device, options.documents, options.tokens)
    experts = json.loads((folder / "config.json").read_text())
    slots = experts["num_hidden_layers"] * experts["num_experts"] // SHARE
    await answer_at_once(folder, texts, options.out, {"device": "cpu", "gpu_experts": slots})


if __name__ == "__main__":
    asyncio.run(main())
