"""Where the sections of a model go on a Ray cluster: a bundle of resources each, on as many nodes as there are."""

import asyncio
import importlib.util
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

logger = logging.getLogger("penstock")
ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer at its address."""
NODE_DIGITS = 8
PLACING_SECONDS = 30.0
"""For a cluster to find room; what is still starting then is no node yet."""


def require_ray() -> None:
    """Raises ConfigError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("cluster: needs Ray, which is not installed: pip install 'penstock-llm[ray]'")


async def join_cluster(address: str) -> bool:
    """Let this process be a driver of the cluster, unless it is one. Returns whether it was none before.

    Raises ConfigError where there is no cluster.
    """
    import ray

    if ray.is_initialized():
        return False
    if address.startswith("ray://"):
        raise ConfigError(
            f"cluster: need 'auto' or the HOST:PORT of a cluster that this machine is a node of, have {address!r}: "
            "Ray's client has no calls that an event loop could wait for"
        )
    try:
        await _answers(address)
        await asyncio.to_thread(ray.init, address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cluster: found no Ray cluster at {address!r}: {_first_line(error)}; start one with `ray start --head` "
            "here, and with `ray start --address=HOST:PORT` on the other machines"
        ) from error
    return True


async def _answers(address: str) -> None:
    """Raises OSError where nothing answers at HOST:PORT: Ray would try for minutes, and no thread can be stopped."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                _, writer = await asyncio.open_connection(host, int(port))
        except TimeoutError:
            raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s") from None
        writer.close()


async def leave_cluster(joined: bool) -> None:
    """End this process's part in the cluster, where it has `joined` it for a model."""
    import ray

    if joined:
        await asyncio.to_thread(ray.shutdown)


@dataclass(frozen=True, slots=True)
class Placement:
    """A bundle for each section, on the node of that number among `nodes`, which have names for people."""

    group: "PlacementGroup"
    nodes: tuple[str, ...]
    needs_gpu: bool

    @property
    def sections(self) -> int:
        """The number of sections."""
        return len(self.nodes)

    def options(self, number: int) -> dict[str, Any]:
        """The options of the actor of a section. Ray starts it anew whenever it dies, elsewhere if its node is gone.

        A call is never made twice: a pass that was lost is computed anew with all others.
        """
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return {
            "num_cpus": 1,
            "num_gpus": int(self.needs_gpu),
            "max_restarts": -1,
            "max_task_retries": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, number),
        }


async def place(sections: int | None, device: str, most: int) -> Placement:
    """Reserve a bundle for each section; without a number, as many as there are nodes with what a section needs, and
    at `most` so many.

    A bundle has one CPU, though a section uses all of its node: so those of a node that is gone find room elsewhere.
    They are spread over nodes as far as possible. Raises ConfigError where there is no room.
    """
    import ray
    from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs_gpu = device == "cuda" or (device == "auto" and all(one.get("GPU", 0) >= 1 for one in nodes))
    bundle = {"CPU": 1.0, **({"GPU": 1.0} if needs_gpu else {})}
    able = [one for one in nodes if all(one.get(name, 0) >= count for name, count in bundle.items())]
    need = " and ".join(f"1 {name}" for name in bundle)
    if not able:
        raise ConfigError(f"cluster: need a node with {need} free for a section, have {len(nodes)} nodes without")
    count = sections or min(len(able), most)
    group = placement_group([bundle] * count, strategy="SPREAD")
    if not await asyncio.to_thread(group.wait, PLACING_SECONDS):
        remove_placement_group(group)
        free = {name: ray.available_resources().get(name, 0) for name in bundle}
        raise ConfigError(
            f"cluster: need {need} for each of {count} sections, have {free} free on {len(nodes)} nodes: ask for fewer "
            "sections, or end what holds them"
        )
    if count > len(able):
        logger.warning("%d sections are more than the nodes, %d: some share a node and its disk", count, len(able))
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    places = placement_group_table(group)["bundles_to_node_id"]
    names = [node_name(addresses[places[number]], places[number]) for number in range(count)]
    return Placement(group, tuple(names), needs_gpu)


def node_name(address: str, node_id: str) -> str:
    """A node for people: two may run on one machine."""
    return f"{address} ({node_id[:NODE_DIGITS]})"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
