"""As much is recorded as the plan counts memory for, and no more."""

from pipeline.devices.sim import SimDevice
from pipeline.generation.records import Records


def test_what_is_recorded_stays_so_and_behind_the_most_nothing_is_added() -> None:
    device = SimDevice(repeated_rows=(1, 2))
    records = Records(device, groups=3, micro_batches=1)
    keys = list(range(Records.most(device, 3, 1)))
    assert len(keys) == 12
    assert [records.admit(key) for key in keys] == keys
    assert records.admit("one more") is None
    assert [records.admit(key) for key in keys] == keys
    assert Records(SimDevice(), groups=3, micro_batches=1).admit("any") is None, "a device that repeats nothing"
