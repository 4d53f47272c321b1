"""A section on a node, as an actor of Ray: all its methods are called from other processes.

Nothing here imports torch before an actor is there, which says how many threads it gets.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.core.errors import said
from pipeline.cluster.placing import node_name
from pipeline.cluster.section_calls import (
    RECORDING_GONE,
    NodeTrace,
    NotBegun,
    Offer,
    Opened,
    SectionPlan,
    Survey,
)
from pipeline.errors import ActorFailed, PenstockError

if TYPE_CHECKING:
    from pipeline.cluster.orders import PassOrder, SectionReport
    from pipeline.cluster.section_node import SectionNode

THREADS = "OMP_NUM_THREADS"
"""Ray sets it to the CPUs that an actor reserves: a section uses all that its node has."""


class SectionActor:
    """One section, in a process of its own. Ray starts that anew when it has died; then it is to `begin` once more."""

    def __init__(self, folder: Path, settings: Any, number: int, environment: Mapping[str, str]) -> None:
        """`environment` is what the coordinator's says of threads."""
        os.environ.pop(THREADS, None)
        os.environ.update(environment)
        self._folder, self._settings, self._number = folder, settings, number
        self._node: SectionNode | None = None

    async def survey(self) -> Survey:
        """What this process finds on its node, before any memory is taken."""
        from pipeline.cluster.surveys import survey

        with telling_plainly():
            return Survey(_node(), *await asyncio.to_thread(survey, self._folder, self._settings))

    async def offer(self, layers: frozenset[int], *, fitting: bool) -> Offer:
        """What this section could do with these layers."""
        from pipeline.cluster.surveys import offer

        with telling_plainly():
            return await asyncio.to_thread(offer, self._folder, self._settings, layers, fitting=fitting)

    async def begin(self, plan: SectionPlan) -> Opened:
        """Open the section, unless this process has done so, and start its lines anew.

        It knows nothing any more of what came before.
        """
        from pipeline.cluster.section_node import SectionNode

        with telling_plainly():
            if self._node is None:
                self._others = plan.others
                settings, number = self._settings, self._number
                self._node = await SectionNode.open(self._folder, settings, _node(), number, plan, self._hand_on)
            await self._node.start()
            return self._node.opened()

    async def compute(self, order: "PassOrder") -> "SectionReport":
        """Let a pass go through the section."""
        with telling_plainly():
            return await self._begun().compute(order)

    async def rows(self, number: int, layer: int, *arguments: Any) -> None:
        """Take hidden states from the section before."""
        if self._node is not None:  # else the pass has ended with the process that it was for
            self._node.passes.arrived(number, layer, arguments)

    async def withdraw(self, numbers: Sequence[int]) -> None:
        """Compute no more of these sequences in the pass that runs."""
        if self._node is not None:
            self._node.sequences.withdraw(numbers)

    async def clock(self) -> float:
        """What the clock of this process says, in seconds."""
        with telling_plainly():
            return self._begun().clock()

    async def record(self) -> None:
        """Record what the section does from now on."""
        with telling_plainly():
            self._begun().record()

    async def recorded(self) -> NodeTrace:
        """Record no more, and return what was recorded."""
        with telling_plainly():
            if self._node is None:
                raise NotBegun(RECORDING_GONE)
            return self._node.recorded()

    async def watch(self) -> None:
        """Return never: the caller hears at once when this process has ended."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Stop the lines and give everything back."""
        with telling_plainly():
            if self._node is not None:
                await self._node.aclose()

    async def _hand_on(self, section: int, number: int, layer: int, rows: Sequence[Any]) -> None:
        await self._others[section].rows.remote(number, layer, *rows)

    def _begun(self) -> "SectionNode":
        if self._node is None:
            raise NotBegun("the section is to begin first")
        return self._node


def _node() -> str:
    import ray

    return node_name(ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())


@contextlib.contextmanager
def telling_plainly() -> Iterator[None]:
    """Raise errors that any process can read: ours, and Python's own."""
    try:
        yield
    except PenstockError as error:
        plain = plain_error(error)
        raise plain from plain.__cause__
    except Exception as error:
        cause = plain_cause(error)
        raise ActorFailed("the section", None, None, cause) from cause


def plain_error(error: PenstockError) -> PenstockError:
    """The same error, whose cause is one that any process can read."""
    if isinstance(error, ActorFailed) and error.__cause__ is not None:
        return ActorFailed(error.actor, error.layer, error.group, plain_cause(error.__cause__))
    return error


def plain_cause(error: BaseException) -> BaseException:
    """The same error, or one that says what it says where its class may be unknown elsewhere."""
    if isinstance(error, PenstockError):
        return plain_error(error)
    return error if type(error).__module__ == "builtins" else RuntimeError(said(error))
