"""The keys of a row of the policy table, in order, as the command line promises them."""

COLUMNS = [
    "policy",
    "total_ms",
    "ms_per_layer",
    "ideal_ms",
    "ratio_to_ideal",
    "gap_in_layer_ms",
    "gap_between_layers_ms",
    "l0_l1_ms",
    "l0_l4_ms",
    "groups_requested",
    "link_use",
    "host_blocked_ms",
    "groups_on_device_peak",
    "depth_used",
]
