"""Computes the steady cost of a layer by formula."""

from pipeline.engine.policies import POLICIES
from pipeline.errors import ConfigError, unknown_name
from pipeline.tools.simulation.timings import LayerTimings

MS = 1000.0


def closed_form_ms(policy: str, timings: LayerTimings, micro_batches: int = 1) -> float:
    """Milliseconds from the start of one layer's attention to that of the next, with slots enough and no jitter.

    A and F are the computations, Da, Df the disk hop and Ia, If the H2D hop of an attn and of an ffn group (one of the
    hops is 0 where there is only one), K the KV blocks of a layer, s the blocking check, M the micro-batches.

    `history` and `current` ask for one group at a time, so a group's hops follow one another. The ffn is demanded when
    the attention ends: A + Df + If + F. The next attn travels beside the ffn, and its KV blocks come after it:
    + max(0, Da + Ia - F, K) where they have a link of their own, else + max(0, Da + Ia - F) + K, or, where the blocks
    overtake a group that is still being read (F < Da), + max(Da - F, K) + Ia.

    All others keep each link busy for as long as something is asked for, so the busiest resource sets the pace:
    max(Ca + Cf, Da + Df, Ia + If + K), or K by itself where groups have only one hop. The computations are Ca = A and
    Cf = F, or A + s and F + s with a check.

    With M micro-batches, A / M and F / M each, on a lane for attentions and a lane for ffns that do not slow each
    other, Ca + Cf becomes max(A, F, (A + F) / M): a lane works A or F for each layer; and one micro-batch, whose halves
    follow one another, needs (A + F) / M for its own share of a layer. For M = 1 that is A + F again. From M = 2 on the
    last term is never the largest, so a third micro-batch shortens the way into the first layer, but no other.

    Where groups have two hops and KV blocks move, rows that do not chain their computations, and ask for several groups
    at a time, come nowhere near this: blocks, asked for only when the host gets there, stand behind those groups.

    Raises ConfigError for an unknown policy, and for micro-batches of one that does not chain its computations.
    """
    if policy not in POLICIES:
        raise ConfigError(f"policy: {unknown_name('policy', policy, list(POLICIES))}")
    row = POLICIES[policy]
    if micro_batches != 1 and row.waits != "chained":
        raise ConfigError(f"micro_batches: need 1 for policy {policy}, which does not chain, have {micro_batches}")
    attn, ffn = timings.attn, timings.ffn
    if row.triggered and not row.goes_to_depth:
        return MS * (attn + timings.ffn_disk + timings.ffn_io + ffn + _next_attn_late(timings))
    checks = 2 * timings.check_seconds if row.waits == "blocking" else 0.0
    computing = max(attn, ffn, (attn + ffn) / micro_batches) + checks
    links = timings.attn_disk + timings.ffn_disk, timings.attn_io + timings.ffn_io
    if timings.one_link:
        return MS * max(computing, *links, timings.kv_seconds)
    return MS * max(computing, links[0], links[1] + timings.kv_seconds)


def _next_attn_late(timings: LayerTimings) -> float:
    """Seconds from the end of an ffn until the next attn group, asked for when it began, and its KV blocks are there.

    The blocks are asked for when it ends. Behind a disk they share the H2D lane with the group, first come, first go.
    """
    read, copied, kv = timings.attn_disk, timings.attn_disk + timings.attn_io, timings.kv_seconds
    if timings.one_link:
        return max(0.0, copied - timings.ffn, kv)
    if timings.ffn < read:
        return max(read - timings.ffn, kv) + timings.attn_io
    return max(0.0, copied - timings.ffn) + kv
