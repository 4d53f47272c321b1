"""One token a pass by this runtime, and the floors of what it moves and computes, measured in the same process."""

import sys
from pathlib import Path
from typing import Any

from pipeline.api import Model
from pipeline.engine.residency import NOTHING_STAYS, Residency
from pipeline.models.model_config import read_config
from pipeline.state.blocks import BLOCK_TOKENS, blocks_for
from pipeline.system.event_loop import run_async
from pipeline.tools.bench.arm_program import say
from pipeline.tools.bench.floors import Floors, apart
from pipeline.tools.bench.pass_arm import SAMPLED, WARM_UP, ArmPasses, PassSettings, Scenario, serve_passes
from pipeline.tools.bench.stream import AskedScenario, generate

FLOOR_ROUNDS = 3
SEQUENTIAL = "sequential"
ROUND_TOKENS = 256
"""Prompts of many requests are computed in pieces of at least so many tokens a pass, while the first ones run on."""


def run(settings: PassSettings) -> list[ArmPasses]:
    """Generate through the line, or, sequentially, read each group and then compute it."""
    return run_async((_sequential if settings.arm == SEQUENTIAL else _streamed)(settings))


def model_options(settings: PassSettings) -> dict[str, Any]:
    """The arguments of `Model.open`, with room for what is measured and no more, which would be kept from the weights.

    Where no prompt is long, a pass needs no more tokens than there are requests.
    """
    scenarios = [one.scenario for one in settings.passes()]
    most = [one.prompt_tokens + one.new_tokens + _tokens_before_all_run(one) for one in scenarios]
    requests = max(one.requests for one in scenarios)
    room: dict[str, Any] = {
        "max_requests": requests,
        "context_tokens": max(most),
        "kv_tokens": max(
            one.requests * blocks_for(tokens) * BLOCK_TOKENS for one, tokens in zip(scenarios, most, strict=True)
        ),
    }
    if max(one.prompt_tokens for one in scenarios) == 1:
        room["max_tokens_per_pass"] = max(BLOCK_TOKENS, requests)
    return {**room, **settings.options, "device": settings.device, "dtype": settings.dtype}


def asked_of(passes: ArmPasses) -> AskedScenario:
    """The same in the words of `stream`."""
    scenario = passes.scenario
    drawn = SAMPLED if scenario.sampled else {"temperature": 0.0}
    new_tokens = scenario.new_tokens + _tokens_before_all_run(scenario)
    return {
        "name": scenario.name,
        "prompts": passes.prompts,
        "wanted": scenario.wanted,
        "warm_up": scenario.warm_up,
        "first_token": scenario.first_token,
        "arguments": {"max_new_tokens": new_tokens, "ignore_eos": True, **drawn},
    }


def _tokens_before_all_run(scenario: Scenario) -> int:
    """Tokens that the first request may get before the last one has begun, and while it ends."""
    return 0 if scenario.requests == 1 else 1 + scenario.requests * scenario.prompt_tokens // ROUND_TOKENS


async def _streamed(settings: PassSettings) -> list[ArmPasses]:
    options, measured = model_options(settings), settings.passes()
    async with Model.open(settings.folder, **options) as model:
        say(f"{settings.arm}: reads {model.runtime.reading}")
        for passes in measured:
            passes.token_ids = await generate(model, asked_of(passes), passes.took)
            passes.moving_groups = model.runtime.moving_groups
        residency = model.runtime.residency
    await _with_floors(settings, options, residency, measured)
    return measured


async def _with_floors(
    settings: PassSettings, options: dict[str, Any], residency: Residency, measured: list[ArmPasses]
) -> None:
    """Measure the floors of greedy passes, in the memory that the model gave back.

    Groups of one kind share theirs, so that it is no more than before. Sequences of this floor begin with one token.
    What passes with experts read and compute follows from their tokens: they have no floors.
    """
    if read_config(Path(settings.folder)).expert_kinds:
        return
    async with apart(Path(settings.folder), options) as runtime:
        floors = Floors(runtime, residency)
        loaded = await floors.load(shared=True)
        for passes in measured:
            if passes.scenario.first_token or passes.scenario.sampled:
                continue
            decoded = await floors.decode_seconds(loaded, passes.scenario.requests, WARM_UP + FLOOR_ROUNDS)
            passes.floors |= {"read": [], "upload": [], "compute": decoded[WARM_UP:]}
            for _ in range(FLOOR_ROUNDS):
                passes.floors["read"].append(await floors.read_seconds())
                passes.floors["upload"].append(await floors.upload_seconds())


async def _sequential(settings: PassSettings) -> list[ArmPasses]:
    """The same reader, the same computing, and nothing beside anything; all groups are read in every pass."""
    (passes,) = settings.passes()
    async with apart(Path(settings.folder), model_options(settings)) as runtime:
        passes.token_ids = [[]]
        async for seconds, token_id in Floors(runtime, NOTHING_STAYS).sequential(
            passes.prompts[0], passes.scenario.wanted
        ):
            passes.took(seconds)
            passes.token_ids[0].append(token_id)
        passes.moving_groups = runtime.moving_groups
    return [passes]


if __name__ == "__main__":
    sys.exit(serve_passes(run, sys.argv[1:]))
