"""Tables of recorded routing: hit rates, sharing among requests, and what they do to tokens per second.

    python tests/support/routing_tables.py FOLDER [--tokens 1024]

FOLDER has what `recorded_mixture.py` writes: TOPIC.routing, texts of a topic as one prompt each. Writes beside them
text_TOPIC.routing and text_all.routing, in which the same tokens are decoded one by one, for `penstock simulate
--routing` and `penstock plan --routing`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.tools.routing.hit_curves import SHARES, SHOWN, hit_curves
from pipeline.tools.routing.recorded_routing import RecordedRouting, RoutedModel, read_routing, write_routing
from pipeline.tools.routing.replay_routing import REPLAYED, Wants, replay_routing

REQUESTS = (1, 8, 32)
THIRD, PART = 3, 192
"""The share of experts that have slots, and the tokens of each text, where requests share them."""


def decoded(model: RoutedModel, ids_PRLK: np.ndarray) -> RecordedRouting:
    """Passes of as many rows as there are requests, all of them decoding."""
    passes, rows = ids_PRLK.shape[:2]
    ids = ids_PRLK.reshape(passes * rows, *ids_PRLK.shape[2:])
    return RecordedRouting(model, np.full(passes, rows, np.int32), np.zeros(len(ids), np.uint8), ids)


def one_by_one(model: RoutedModel, documents_NTLK: np.ndarray) -> RecordedRouting:
    """One request, text behind text."""
    return decoded(model, documents_NTLK.reshape(-1, 1, *documents_NTLK.shape[2:]))


def at_once(model: RoutedModel, documents_NTLK: np.ndarray, requests: int) -> RecordedRouting:
    """So many texts beside each other; where there are fewer, later parts of the same ones."""
    documents, tokens = documents_NTLK.shape[:2]
    parts = -(-requests // documents)
    cut = documents_NTLK[:, : tokens // parts * parts].reshape(documents * parts, -1, *documents_NTLK.shape[2:])
    return decoded(model, cut[:requests].swapaxes(0, 1))


def curves_of(routing: RecordedRouting) -> str:
    """Hit rates of each policy by share of all experts."""
    model = routing.model
    slots = [round(share * len(model.layers) * model.experts) for share in SHARES[:-1]]
    curves = hit_curves(Wants.of(routing), slots)
    return "\n".join(f"  {name:14} " + " ".join(f"{rate:6.3f}" for rate in curves.hit_rates(name)) for name in SHOWN)


def union_sizes(routing: RecordedRouting) -> tuple[float, float, float]:
    """The mean union of a layer; what it would be if rows chose each by itself, as often; and if routing were flat."""
    model, rows = routing.model, int(routing.rows[0])
    real = np.mean([len(union) for one in routing.passes() for union in one.unions()])
    alone = []
    for place in range(routing.ids.shape[1]):
        uses = np.bincount(routing.ids[:, place].ravel(), minlength=model.experts) / len(routing.ids)
        alone.append(float((1 - (1 - np.minimum(uses, 1)) ** rows).sum()))
    flat = model.experts * (1 - (1 - model.chosen / model.experts) ** rows)
    return float(real), float(np.mean(alone)), flat


def persistence(documents_NTLK: np.ndarray) -> float:
    """The share of a token's experts that the token before used, too."""
    now, before = documents_NTLK[:, 1:, :, :, None], documents_NTLK[:, :-1, :, None, :]
    return float((now == before).any(-1).mean())


def sharing(model: RoutedModel, texts: Mapping[str, np.ndarray]) -> str:
    """Reads per token of requests at once, with a third of the experts in slots, against those of one."""
    slots = len(model.layers) * model.experts // THIRD
    mixed = np.stack([one for each in zip(*texts.values(), strict=False) for one in each])
    lines = []
    for name, each in {**texts, "mixed": mixed}.items():
        reads, unions = [], []
        for requests in REQUESTS:
            routing = (
                one_by_one(model, each[:, :PART]) if requests == 1 else at_once(model, each[:, : 2 * PART], requests)
            )
            replayed = replay_routing(Wants.of(routing), [slots], REPLAYED["lru"])
            half = len(routing.rows) // 2
            reads.append(int(replayed.misses[0][half:].sum()) / ((len(routing.rows) - half) * requests))
            unions.append("union {:.1f}, {:.1f} by themselves, {:.1f} flat".format(*union_sizes(routing)))
        gains = " ".join(f"{reads[0] / one:.2f}" for one in reads)
        read = " ".join(f"{one:.2f}" for one in reads)
        lines.append(f"  {name:8} experts read per token {read}: x {gains}; {'; '.join(unions[1:])}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args(arguments)
    texts: dict[str, np.ndarray] = {}
    for path in sorted(options.folder.glob("*.routing")):
        if not path.stem[0].isdigit() and not path.stem.startswith(("said_", "text_")):
            routing = read_routing(path)
            model = routing.model
            texts[path.stem] = routing.ids.reshape(-1, options.tokens, *routing.ids.shape[1:])
    shortest = min(map(len, texts.values()))
    print(f"{model}\nshares of all experts: {' '.join(f'{one:.3f}' for one in SHARES[:-1])}")
    for name, each in texts.items():
        routing = one_by_one(model, each)
        write_routing(options.folder / f"text_{name}.routing", routing)
        print(f"{name}: {len(each)} texts, a token uses {persistence(each):.3f} of the experts of the one before")
        print(curves_of(routing))
    turns = np.stack([one for each in zip(*(each[:shortest] for each in texts.values()), strict=True) for one in each])
    routing = one_by_one(model, turns)
    write_routing(options.folder / "text_all.routing", routing)
    print(f"all topics in turn:\n{curves_of(routing)}")
    for path in sorted(options.folder.glob("said_*.routing")):
        print(f"{path.stem}:\n{curves_of(read_routing(path))}")
    print(f"a third of the experts in slots, {REQUESTS} requests:\n{sharing(model, texts)}")


if __name__ == "__main__":
    main()
