"""Tells which task waits for which, from the frames of tasks that will never go on."""

import asyncio
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeAlias

from actors.core.actor import Actor
from actors.core.budget import Budget, Slot
from actors.core.channel import Receiver, Sender
from actors.core.message import Message
from actors.core.stage import Mover, Source

Task: TypeAlias = "asyncio.Task[Any]"


def waits_for(tasks: Iterable[Task]) -> str:
    """One clause per task: what an actor waits for, and which actor holds that; of other tasks, where they stand."""
    frames = {task: list(_frames(task)) for task in tasks}
    actors = {task: actor for task, standing in frames.items() if isinstance(actor := _owner(standing), Actor)}
    holders = {
        id(message.at): f"layer {message.layer} {message.group} at {actor.name}"
        for task, actor in actors.items()
        for message in _messages(actor, frames[task])
    }
    senders = {outlet.name: actor.name for actor in actors.values() if (outlet := actor.wiring.outlet) is not None}
    clauses = (f"{task.get_name()} {_wait(standing, holders, senders)}" for task, standing in frames.items())
    return "; ".join(sorted(clauses))


def _frames(task: Task) -> Iterator[FrameType]:
    """Yield the frames from the outermost to the innermost."""
    coroutine: Any = task.get_coro()
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is not None:
            yield frame
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)


def _owner(standing: list[FrameType]) -> object:
    """Return the object whose method a task runs."""
    return standing[0].f_locals.get("self") if standing else None


def _messages(actor: Actor, standing: list[FrameType]) -> Iterator[Message[Any]]:
    """Yield the messages in an actor's queue, put aside, and in hand: none while it waits for the next message."""
    if (inlet := actor.wiring.inlet) is not None:
        yield from inlet.items
    for aside in vars(actor).values():
        if isinstance(aside, dict):
            yield from (item for item in aside.values() if isinstance(item, Message))
    if not any(isinstance(frame.f_locals.get("self"), Receiver) for frame in standing):
        local = (value for frame in standing for value in frame.f_locals.values())
        yield from (value for value in local if isinstance(value, Message) and value.at is not None)


def _wait(standing: list[FrameType], holders: dict[int, str], senders: dict[str, str]) -> str:
    owner = _owner(standing)
    for frame in standing if isinstance(owner, Actor) else ():
        match frame.f_locals.get("self"):
            case Budget() as budget if isinstance(owner, Mover) and owner.wiring.in_hand is not None:
                kind = owner.kind(owner.wiring.in_hand)
                held = ((holders.get(id(slot)), slot.index) for slot in budget.held(kind))
                by = ", ".join(holder or f"no actor that would free slot {index}" for holder, index in held)
                return f"waits for an {kind} slot of the {budget.name} budget, held by {by}"
            case Slot() as slot:
                return f"waits for the last reader of slot {slot.index} of the {slot.place} budget"
            case Sender() as sender:
                return f"waits for room in the queue of {sender.name}"
            case Receiver() as receiver:
                return f"waits for a message from {senders.get(receiver.name, 'no actor')}"
    if isinstance(owner, Source):
        return "waits for its plan: nothing is asked for, or what was asked for has not arrived"
    where = [frame.f_code.co_qualname for frame in standing]
    message = next(
        (value for frame in standing for value in frame.f_locals.values() if isinstance(value, Message)), None
    )
    return f"in {' > '.join(where)}" + (f" with layer {message.layer} {message.group}" if message else "")
