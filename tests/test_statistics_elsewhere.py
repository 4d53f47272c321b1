"""Statistics are asked for from any thread, as exporters of metrics do, and when the model's event loop has gone."""

import asyncio
import threading

from pipeline import Model


async def opened() -> Model:
    model = await Model.open(device="cpu")
    await model.generate("class Stack:\n", max_new_tokens=1)
    return model


async def test_statistics_are_read_between_two_turns_of_the_loop_whoever_asks() -> None:
    """Actors and requests change them at any time within a turn."""
    model, asked = await opened(), list[int]()
    asking = threading.Thread(target=lambda: asked.append(model.statistics().passes))
    try:
        asking.start()
        asking.join(0.02)
        in_one_turn = list(asked)
        await asyncio.to_thread(asking.join)
        assert (in_one_turn, asked) == ([], [model.statistics().passes])
    finally:
        await model.aclose()


def test_statistics_can_be_asked_for_when_the_loop_has_gone() -> None:
    loop = asyncio.new_event_loop()
    model = loop.run_until_complete(opened())
    assert model.statistics().passes == 1
    loop.run_until_complete(model.aclose())
    loop.close()
    assert model.statistics().passes == asyncio.run(asyncio.to_thread(model.statistics)).passes == 1
