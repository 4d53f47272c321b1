"""What an open model says about its requests, tokens and KV blocks, beside what its line says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engine.statistics import EngineStatistics
from pipeline.generation.admission import Admission
from pipeline.generation.delivery import Delivery
from pipeline.generation.expert_record import ExpertsRecord
from pipeline.generation.kv_record import BlocksRecord, kv_blocks
from pipeline.generation.section_record import SectionRecord
from pipeline.state.state_slots import StateSlots


@dataclass(frozen=True, slots=True)
class RequestsRecord:
    """Requests now, and those that have ended since the model was opened.

    Those of `tokenizing` calls, whose prompts are still made into token ids, are not among them yet. `paused` are
    those, running or waiting, whose streams no caller reads. `passes_not_shared` counts the passes for which
    some waited, by the setting that kept them from sharing it.
    """

    tokenizing: int
    running: int
    waiting: int
    paused: int
    finished: int
    cancelled: int
    failed: int
    passes_not_shared: dict[str, int]


@dataclass(frozen=True, slots=True)
class PrefixRecord:
    """Tokens of admitted prompts that were looked up in the prefix cache, and those found in it.

    `cached_blocks` are the KV blocks that can be found and that no request holds; they are evicted when one needs room.
    """

    queried_tokens: int
    hit_tokens: int
    cached_blocks: int


@dataclass(frozen=True, slots=True)
class StateRecord:
    """Slots of recurrent state, each one in every recurrent layer: held by requests, the most that they can hold,
    keeping snapshots that can be found, and all there are.

    `hits` counts the requests that began with a snapshot, `evictions` the snapshots that gave way to what came later.
    """

    used: int
    requests: int
    snapshots: int
    slots: int
    hits: int
    evictions: int


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """The bytes of the weights of a pass: as they are stored, move and stay, and of their matrices as they are computed
    with. There are no seconds of decoding: it happens inside the products.
    """

    stored_bytes: int
    computed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics(EngineStatistics):
    """Counters since the model was opened: those of its line, and what it has computed.

    `tokens` were generated, `computed_tokens` passed through the model, those of prompts among them; `tokens_per_pass`
    is the mean of the latter. `recurrent_state` is None for models without recurrent layers, `experts` without those.
    `sections` has a record for each device: other figures are those of all of them, and where there are several, names
    of actors and budgets bear the number of theirs.
    """

    passes: int
    tokens: int
    computed_tokens: int
    tokens_per_pass: float
    requests: RequestsRecord
    kv_blocks: BlocksRecord
    prefixes: PrefixRecord
    recurrent_state: StateRecord | None
    weights: WeightsRecord
    experts: ExpertsRecord | None
    sections: tuple[SectionRecord, ...]


def program_counters(program: Delivery, sections: Sequence[SectionRecord]) -> dict[str, Any]:
    """What a model counts beside its lines, each of which is that of a section."""
    pool, prefixes = program.admission.batcher.pool, program.admission.batcher.prefixes
    return {
        "passes": program.passes,
        "tokens": program.tokens,
        "computed_tokens": program.computed_tokens,
        "tokens_per_pass": program.computed_tokens / max(1, program.passes),
        "requests": _requests(program.admission),
        "kv_blocks": kv_blocks([one.kv for one in sections], pool),
        "prefixes": PrefixRecord(prefixes.queried_tokens, prefixes.hit_tokens, pool.cached),
        "recurrent_state": None if prefixes.states is None else _recurrent_state(prefixes.states),
        "sections": tuple(sections),
    }


def _requests(admission: Admission) -> RequestsRecord:
    batcher = admission.batcher
    ended = {outcome: batcher.ended[outcome] for outcome in ("finished", "cancelled", "failed")}
    return RequestsRecord(
        tokenizing=admission.tokenizing_calls,
        running=batcher.running,
        waiting=batcher.waiting,
        paused=batcher.paused,
        passes_not_shared=dict(batcher.shortages.passes),
        **ended,
    )


def _recurrent_state(states: StateSlots) -> StateRecord:
    return StateRecord(states.used, states.requests, states.kept, states.slots, states.hits, states.evictions)
