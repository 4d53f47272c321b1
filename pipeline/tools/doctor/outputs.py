"""Checks that a model says the same, bit for bit, however its weights come to the device."""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.api import Model
from pipeline.errors import CheckpointError, ConfigError
from pipeline.generation.requests import CallArguments
from pipeline.system.sizes import human_bytes
from pipeline.tools.doctor.check import Check, failed

PROMPT_TOKENS = 12
NEW_TOKENS = 16
LOGPROBS = 5
PROGRESS_SECONDS = 0.5
RUNS: Mapping[str, Mapping[str, Any]] = {
    "streamed": {"residency": False},
    "resident": {"residency": True},
    "one group": {"gpu_groups": 1, "host_groups": 1, "residency": False},
}
"""By name, the settings that tell the runs apart: groups overlap; what fits stays; one group at a time in a place."""
DIFFERENT = "do not trust what this machine computes: run it again, and report both outputs"
Token = tuple[int, tuple[tuple[int, str], ...]]
"""The id, and the log-probabilities by id, as text that tells any two floats apart."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """The outputs of one run, several in `says` when it was asked twice; bytes and seconds are of the last time.

    `token_seconds` is the median from one token to the next: the first ones of some runs also load kernels.
    """

    says: tuple[tuple[Token, ...], ...]
    read_bytes: int
    token_seconds: float
    resident_groups: Mapping[str, int]
    groups: int
    where: str


async def check_outputs(folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> list[Check]:
    """Check each run against the first that ends. Raises ConfigError and CheckpointError as opening the model does."""
    checks: list[Check] = []
    answers: dict[str, RunResult] = {}
    for name, arm in RUNS.items():

        def say_of(text: str, name: str = name) -> None:
            say(f"{name}: {text}")

        try:
            answers[name] = await _answer(folder, {**settings, **arm}, say_of)
        except (ConfigError, CheckpointError):
            raise
        except Exception as error:
            checks.append(failed(name, error))
        else:
            checks.append(_judged(name, answers))
    return checks


async def _answer(folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> RunResult:
    say("opening the model")
    async with Model.open(folder, **settings) as model:
        # What stays is brought in by the first passes, and only found in place by later ones.
        says = [(await _generate(model, say))[0]] if settings["residency"] else []
        before = model.statistics().bytes_read
        tokens, token_seconds = await _generate(model, say)
        after = model.statistics()
        runtime = model.runtime
        devices = ", ".join(str(one.device.torch_device) for one in runtime.sections)
        return RunResult(
            (*says, tokens),
            after.bytes_read - before,
            token_seconds,
            after.resident_groups,
            sum(len(one.catalog.order) for one in runtime.sections),
            f"{str(runtime.dtype).removeprefix('torch.')} on {devices}",
        )


async def _generate(model: Model, say: Callable[[str], None]) -> tuple[tuple[Token, ...], float]:
    size, source = model.runtime.config.vocabulary_size, model.runtime.source
    prompt = [index * size // PROMPT_TOKENS for index in range(PROMPT_TOKENS)]
    wanted: CallArguments = {"max_new_tokens": NEW_TOKENS, "temperature": 0.0, "ignore_eos": True, "logprobs": LOGPROBS}
    tokens, times, said = [], [], 0.0
    async with contextlib.aclosing(model.stream(prompt, **wanted)) as chunks:
        async for chunk in chunks:
            logprobs = tuple((token_id, value.hex()) for token_id, value in (chunk.logprobs or {}).items())
            tokens.append((chunk.token_ids[0], logprobs))
            times.append(now := time.perf_counter())
            if now - said > PROGRESS_SECONDS:
                said = now
                say(f"token {len(tokens)} of {NEW_TOKENS}, {human_bytes(source.bytes_read)} read")
    return tuple(tokens), statistics.median(after - before for before, after in itertools.pairwise(times))


def _judged(name: str, answers: Mapping[str, RunResult]) -> Check:
    answer = answers[name]
    other, reference = next(iter(answers.items()))
    measured = f"read {human_bytes(answer.read_bytes)} · {answer.token_seconds:.3g} s per token · {_staying(answer)}"
    for said in answer.says:
        if different := _difference(said, reference.says[0]):
            whom = f"from {other}" if other != name else "when asked again"
            return Check(name, "bad", f"differs {whom} at {different} · {measured}", DIFFERENT)
    if RUNS[name]["residency"] and not any(answer.resident_groups.values()):
        what = "nothing fits, so this was streamed too: allow it more memory to compare them"
        return Check(name, "note", f"equals {other}, but {measured}", what)
    if other == name:
        return Check(name, "good", f"{len(answer.says[0])} tokens, {answer.where} · {measured}")
    return Check(name, "good", f"equals {other}, tokens and log-probabilities bit for bit · {measured}")


def _staying(answer: RunResult) -> str:
    count = sum(answer.resident_groups.values())
    if not count:
        return f"none of {answer.groups} groups stays"
    staying = f"all {count} groups stay" if count == answer.groups else f"{count} of {answer.groups} groups stay"
    where = [f"{number} in {place} memory" for place, number in answer.resident_groups.items() if number]
    return f"{staying}: {', '.join(where)}"


def _difference(one: tuple[Token, ...], other: tuple[Token, ...]) -> str:
    """The first token that is not the same, and what of it; empty where there is none."""
    for position, ((token_id, logprobs), (other_id, other_logprobs)) in enumerate(zip(one, other, strict=True), 1):
        where = f"token {position} of {len(one)}"
        if token_id != other_id:
            return f"{where}: {token_id}, not {other_id}"
        for mine, theirs in zip(logprobs, other_logprobs, strict=True):
            if mine != theirs:
                values = [f"{float.fromhex(value)!r} for {ranked_id}" for ranked_id, value in (mine, theirs)]
                return f"{where}: a log-probability of {values[0]}, not {values[1]}"
    return ""
