"""`penstock bench policies`: every policy on the real device, beside the simulation fed with what was measured."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.core.ports import PrefetchPolicy
from actors.core.trace import Span, Trace
from pipeline.api import Model
from pipeline.engine.policies import CURRENT_CHAINED, POLICIES
from pipeline.errors import ConfigError, PenstockError
from pipeline.generation.chunks import Output
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.models.model_config import read_config
from pipeline.tools.bench.arm_program import Progress
from pipeline.tools.bench.steady_timings import steady_seconds
from pipeline.tools.simulation.replay import Replay
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.trace.overlap import Overlap
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK, Recording
from pipeline.tools.trace.summary import busy_seconds

WARM_UP_PASSES = 1
TRIAL_TOKENS, TRIALS, MOST_TOKENS = 32, 2, 16384
NEW_TOKENS = 2
LOGPROBS = 5
CHAINED_TITLE = "current, chained"
TOLERATED_DIFFERENCE = 0.25
"""In log-probabilities: cutting a pass into micro-batches changes the shapes of products, and so how bf16 rounds."""


class OutputsDiffer(PenstockError):
    """One prompt got different tokens: one of two runs computed with wrong weights. Always a bug."""


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """One policy measured, and simulated with the measured timings; each over the same passes.

    `error` is simulated / measured total time, less 1. `pass_seconds` are those of the measured passes.
    `logprob_difference` is the largest to the first policy's.
    `chained` is the same policy with its event-chained forward, where it has one.
    """

    measured: Overlap
    simulated: Overlap
    passes: int
    batch_tokens: int
    token_ids: tuple[int, ...]
    logprob_difference: float
    pass_seconds: tuple[float, ...]
    chained: "PolicyReport | None" = None

    @property
    def error(self) -> float:
        """The relative error of the simulation."""
        return self.simulated.total_ms / self.measured.total_ms - 1

    def as_dict(self) -> dict[str, Any]:
        """The measured columns, with the simulated ones, and what else is known, as plain values."""
        return {
            **self.measured.as_dict(),
            "simulated": self.simulated.as_dict(),
            "error": self.error,
            "passes": self.passes,
            "batch_tokens": self.batch_tokens,
            "token_ids": list(self.token_ids),
            "logprob_difference": self.logprob_difference,
            "pass_seconds": list(self.pass_seconds),
            **({"chained": self.chained.as_dict()} if self.chained else {}),
        }


@dataclass(slots=True)
class PolicyBench:
    """The comparison that policies share: the model, the passes, and the output of the first."""

    folder: Path
    settings: Mapping[str, Any]
    passes: int
    batch_tokens: int
    progress: Progress
    expected: Output | None = None
    recordings: dict[str, Recording] = field(default_factory=dict)

    async def run(self, policies: Mapping[str, PrefetchPolicy]) -> list[PolicyReport]:
        """Measure one policy after the other, by the names of their rows.

        Raises OutputsDiffer when one gives other tokens than the first, ConfigError where the context is too short.
        """
        passes, most = WARM_UP_PASSES + self.passes, read_config(self.folder).max_positions
        if (need := passes * self.batch_tokens + NEW_TOKENS) > most:
            asked = f"{passes} passes of {self.batch_tokens} tokens"
            raise ConfigError(f"--batch-tokens: {asked} need {need} positions, have {most}; lower it, or --passes")
        reports = []
        for name, policy in policies.items():
            report = await self._measure(policy, name, name)
            if policy == POLICIES["current"]:
                chained = await self._measure(CURRENT_CHAINED, CHAINED_TITLE, name)
                report = replace(report, chained=chained)
            reports.append(report)
        return reports

    async def _measure(self, policy: PrefetchPolicy, title: str, name: str) -> PolicyReport:
        self.progress(f"{title}: opening the model")
        tokens = (WARM_UP_PASSES + self.passes) * self.batch_tokens
        settings = {**self.settings, "max_tokens_per_pass": self.batch_tokens, "context_tokens": tokens + NEW_TOKENS}
        about = f"{title}: {WARM_UP_PASSES + self.passes} passes of {self.batch_tokens} tokens"
        opened = partial(self.progress, about)
        settings["policy"] = policy
        runtime, trace, output = await recorded_run(self.folder, settings, tokens, NEW_TOKENS, LOGPROBS, opened)
        order, policy, one_link = runtime.catalog.order, runtime.policy, len(runtime.device.places) == 1
        asked, depth = runtime.wired.asked
        if trace.dropped:
            raise ConfigError(f"passes: have {self.passes}, more than a trace holds; lower it")
        spans = trace.spans
        self.recordings[title] = Recording.of(runtime, "bench policies")
        self.progress(f"{title}: simulating")

        def overlap(spans: Sequence[Span]) -> Overlap:
            blocking = policy.waits == "blocking"
            window = {"first_pass": WARM_UP_PASSES, "passes": self.passes}
            return Overlap.of(name, spans, order, blocking=blocking, asked=asked, depth=depth, **window)

        measured = overlap(spans)
        timings = Replay.of(spans, order, one_link=one_link, check_seconds=measured.host_blocked_ms / 1000)
        settings = {name: self.settings[name] for name in ("gpu_groups", "host_groups")}
        settings |= {"passes": WARM_UP_PASSES + self.passes, "pass_tokens": self.batch_tokens}
        # On a thread: virtual time needs an event loop of its own.
        simulated = await asyncio.to_thread(simulate, timings, policy, **settings)
        difference = self._difference(output, title)
        row = overlap(simulated.trace.spans)
        seconds = tuple(steady_seconds(spans, order))
        return PolicyReport(measured, row, self.passes, self.batch_tokens, output.token_ids, difference, seconds)

    def _difference(self, output: Output, title: str) -> float:
        """The largest difference of a log-probability to the first policy's."""
        expected = self.expected = self.expected or output
        pairs = zip(output.logprobs or (), expected.logprobs or (), strict=True)
        difference = max(abs(have[token] - need[token]) for have, need in pairs for token in have.keys() & need.keys())
        if output.token_ids != expected.token_ids or difference > TOLERATED_DIFFERENCE:
            need = f"the tokens {expected.token_ids} of the first policy"
            have = f"{output.token_ids}, with log-probabilities up to {difference:.3g} apart"
            raise OutputsDiffer(f"{title}: need {need}, have {have}")
        return difference


async def measured_balance(folder: Path, settings: Mapping[str, Any], passes: int, progress: Progress) -> int:
    """Return how many tokens a pass needs for its computing to take as long as its slower transfer.

    Found by trials, each with as many tokens as the one before suggests: a device is faster with many than with few.
    """
    tokens = TRIAL_TOKENS
    for _ in range(TRIALS):
        progress(f"choosing the tokens per pass: a trial with {tokens}")
        trial = {**settings, "max_tokens_per_pass": tokens, "context_tokens": 3 * tokens + 1}
        runtime, trace, _ = await recorded_run(folder, trial, 3 * tokens, 1)
        spans, most = trace.spans, runtime.config.max_positions // (WARM_UP_PASSES + passes + 1)
        busy = busy_seconds(spans, min(span.started for span in spans), max(span.ended for span in spans))
        ratio = max(busy.get(DISK, 0.0), busy.get(LINK, 0.0)) / busy[COMPUTE]
        tokens = max(1, min(round(tokens * ratio), MOST_TOKENS, most))
    return tokens


async def recorded_run(
    folder: Path,
    settings: Mapping[str, Any],
    prompt_tokens: int,
    new_tokens: int,
    logprobs: int | None = None,
    opened: Callable[[], object] = int,
) -> tuple[ModelRuntime, Trace, Output]:
    """Open a model, call `opened`, record how it continues a prompt greedily, and close it."""
    async with Model.open(folder, trace=Trace(), **settings) as model:
        opened()
        prompt = prompt_of(prompt_tokens, model.runtime.config.vocabulary_size)
        async with model.recording() as trace:
            output = await model.generate(
                prompt, max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True, logprobs=logprobs
            )
        return model.runtime, trace, output


def prompt_of(tokens: int, vocabulary_size: int) -> list[int]:
    """A prompt of few different tokens, so that fetching embedding rows costs next to nothing."""
    return [1 + index % min(7, vocabulary_size - 1) for index in range(tokens)]
