"""No two replicas promise the same memory, and what a config file of Serve says is checked before any replica opens."""

import pytest

from pipeline.errors import ConfigError
from pipeline.replicas.replica_options import replica_options
from pipeline.replicas.share import Machine, share_of
from pipeline.system.hub_cache import BUNDLED

HEAD, FOUR, GPUS = Machine(cpus=0, gpus=0), Machine(cpus=4, gpus=0), Machine(cpus=16, gpus=2)


def share(machines: list[Machine], **args: object) -> dict[str, object]:
    return share_of(replica_options({"model": "bundled", **args}), machines)


def test_a_replica_takes_what_it_may_promise() -> None:
    sized = {"device": "cpu", "host_memory": "1GB"}
    assert share([FOUR], replicas=2, settings=sized) == {
        "ray_actor_options": {"num_cpus": 2, "num_gpus": 0, "memory": 1_000_000_000}
    }
    assert share([FOUR, FOUR], replicas=2, settings={"host_memory": "50%", "device": "cpu"}) == {
        "ray_actor_options": {"num_cpus": 4, "num_gpus": 0},
        "max_replicas_per_node": 1,
    }
    assert share([GPUS, FOUR], replicas="auto", cpus=3) == {
        "ray_actor_options": {"num_cpus": 3, "num_gpus": 1},
        "max_replicas_per_node": 1,
    }
    assert share([HEAD, FOUR], replicas=1, settings=sized) == share([FOUR], replicas=1, settings=sized)
    with pytest.raises(ConfigError, match="need a machine with cores"):
        share([HEAD])
    crowded = share([FOUR], replicas=8, settings=sized)["ray_actor_options"]
    assert crowded == {"num_cpus": 0.5, "num_gpus": 0, "memory": 1_000_000_000}
    with pytest.raises(ConfigError, match=r"host_memory: need a size for each of 3 replicas on 2 machines"):
        share([FOUR, FOUR], replicas=3)


def test_two_devices_are_two_gpus_of_a_replica() -> None:
    settings = {"devices": ["cuda:0", "cuda:1"], "host_memory": "1GB"}
    options = share([GPUS], replicas=1, settings=settings)["ray_actor_options"]
    assert options == {"num_cpus": 16, "num_gpus": 2, "memory": 1_000_000_000}
    with pytest.raises(ConfigError, match="devices: need the names of those of one replica"):
        share([GPUS], replicas=1, settings={"devices": "all"})


def test_what_a_config_file_says_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEY", "first,second")
    options = replica_options({"model": "bundled", "settings": {"host_memory": "1GB"}, "names": ["small"]})
    assert (options.server.model, options.server.names, options.server.api_keys) == (
        BUNDLED,
        ("small",),
        ("first", "second"),
    )
    assert options.server.settings == {"share_prefixes": True, "host_memory": "1GB"}
    assert replica_options({"model": "bundled", "api_keys": ["third"]}).server.api_keys == ("third",)
    for args, message in (
        ({}, "args: need model"),
        (
            {"model": "bundled", "port": 8000},
            "args: no such argument: port; there are allowed_hosts, api_keys, cors, cpus",
        ),
        ({"model": "bundled", "replicas": 0}, "replicas: need a number from 1 to 4096, or 'auto', have 0"),
        ({"model": "bundled", "replicas": True}, "replicas: need a number"),
        ({"model": "bundled", "cpus": 0}, "cpus: need a number of cores above 0"),
        ({"model": "bundled", "settings": {"hots_memory": 1}}, "hots_memory"),
    ):
        with pytest.raises(ConfigError, match=message):
            share_of(replica_options(args), [FOUR])
