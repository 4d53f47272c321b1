"""Compare prefetch policies before there is a machine to run them on, one of your own among them."""

from dataclasses import replace

from pipeline import POLICIES, LayerTimings, policy_table, simulate

TIMINGS = LayerTimings(
    layers=80,
    attn=0.080,
    ffn=0.120,
    attn_disk=0.060,
    ffn_disk=0.100,
    attn_io=0.030,
    ffn_io=0.050,
    check_seconds=0.005,
    jitter=0.2,
)


def main() -> None:
    mine = replace(POLICIES["stage3"], name="mine", depth=2, micro_batches=4)
    rows = [simulate(TIMINGS, policy, gpu_groups=8).overlap() for policy in (*POLICIES.values(), mine)]
    print(policy_table(rows))
    best = min(rows, key=lambda row: row.total_ms)
    print(
        f"-- {best.policy} is the fastest: {best.ratio_to_ideal:.3f} of the ideal, {best.ms_per_layer:.0f} ms per layer"
    )


main()
