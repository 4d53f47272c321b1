"""Async tests run on asyncio, those that the loop could break on uvloop too, and each fails when it blocks the loop."""

import asyncio
import gc
import inspect
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support.busy_machine import queued_seconds
from support.cases import EVERYTHING

from pipeline.system import guard

LONGEST_BLOCK_SECONDS = 0.4
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
"""Set before torch is imported: its threads spin else, which costs ten times the computing where others compute too."""
ONE_LOOP = {
    *("checkpoints", "formats", "models", "replicas", "text", "tools"),
    *(
        "test_company.py",
        "test_default_kv_room.py",
        "test_examples.py",
        "test_kv_policies.py",
        "test_kv_swapper.py",
        "test_long_contexts.py",
        "test_memory_plan.py",
        "test_parity.py",
        "test_policies_and_stages.py",
        "test_recurrent_state.py",
    ),
    *("test_odd_policies.py", "test_prefetch_policies.py", "test_prefix_sharing.py", "test_resident_groups.py"),
    *("test_files_after_open.py", "test_refusals.py", "test_serving.py", "test_stored_tensors.py"),
    *("test_damaged_quantised.py", "test_quantised_models.py", "test_completions.py", "test_chat_completions.py"),
    *("test_chat.py", "test_forced_calls.py"),
    *("test_bad_checkpoints.py", "test_damaged_experts.py", "test_embedding_stays.py", "test_prompt_logprobs.py"),
    *("test_experts_as_one.py", "test_logit_rows.py", "test_nested_models.py", "test_repeated_work.py"),
    "test_rows_together.py",
    *(
        "test_cuda_company.py",
        "test_cuda_doctor.py",
        "test_cuda_families.py",
        "test_cuda_kv.py",
        "test_cuda_long_contexts.py",
    ),
    *("test_cuda_paged_attention.py", "test_cuda_policies.py", "test_cuda_quantised_models.py"),
}
"""Folders and files whose tests look at bytes, tokens and figures, which no loop changes: they run on asyncio."""
ON_UVLOOP = {
    *("test_concurrent_requests.py", "test_failure_domain.py", "test_kv_failures.py", "test_kv_overlap.py"),
    *("test_api.py", "test_bad_tokens.py", "test_bit_rot.py", "test_blame.py", "test_guarded_opening.py"),
    *("test_long_prompts.py", "test_many_cancelled.py", "test_random_ends.py", "test_unlike_places.py"),
    *("test_sessions.py", "test_unread_streams.py", "test_response_format.py", "test_leaving.py", "test_live.py"),
    *("test_unlike_layers.py", "test_hung_reads.py", "test_launched_as_one.py", "test_open.py", "test_promises.py"),
    *("test_recovery.py", "test_experts.py", "test_connections.py", "test_ray.py", "test_several_devices.py"),
    *("test_nodes.py", "test_node_recordings.py", "test_nodes_seen.py", "test_latent_attention.py"),
    *("test_cpu_experts.py", "test_cuda_line.py", "test_cuda_sessions.py", "test_passes_ahead.py"),
    "test_sections_seen.py",
}
"""Long tests of what a loop could change: they run on the one that the commands use."""
EACH_VALUE = {
    "test_a_failure_spoils_nothing_that_stays",
    "test_closing_that_is_cancelled_at_any_step_can_be_called_again",
    "test_every_arm_of_ours_says_the_same",
    "test_every_policy_moves_kv",
    "test_everything_is_measured",
    "test_halves_take_no_more_than_planned_and_little_less",
    "test_company_changes_no_bit",
    "test_long_runs_without_a_border_are_encoded",
    "test_nor_does_how_much_a_pass_carries_or_in_how_many_parts",
    "test_policies_and_scores_of_prompts_are_those_of_one_device",
    "test_the_peak_stays_within_the_printed_plan",
    "test_the_tokens_are_those_of_transformers",
    "test_those_who_stay_notice_nothing",
    "test_under_every_policy",
    "test_whatever_fails_once_everybody_gets_the_same_tokens",
}
"""Long tests of which as few cases run as hold each value of each parameter; all with PENSTOCK_TESTS=all."""

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=not EVERYTHING)
hypothesis.settings.load_profile("repeatable")


def pytest_configure() -> None:
    """Shells start what is in the background with Ctrl-C ignored, and all that it starts: tests send that signal."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on both loops, or where `ONE_LOOP` or `ON_UVLOOP` says; on both with PENSTOCK_TESTS=all."""
    if "anyio_backend" in metafunc.fixturenames:
        below = metafunc.definition.path.relative_to(Path(__file__).parent)
        names = {below.parts[0], below.name}
        alone = "asyncio" if names & ONE_LOOP else "uvloop" if names & ON_UVLOOP else ""
        loops = (alone,) if alone and not EVERYTHING else ("asyncio", "uvloop")
        metafunc.parametrize("anyio_backend", loops, indirect=True)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


@pytest.fixture
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure this machine for as short as may be: what the rates are is not what most tests look at."""
    if not EVERYTHING:
        monkeypatch.setattr("pipeline.tools.bench.machine_rates.ROUNDS", 1)
        monkeypatch.setattr("pipeline.tools.bench.machine_rates.SWEEP_SECONDS", 0.02)
        monkeypatch.setattr("pipeline.tools.bench.expert_passes.ROUNDS", 1)
        monkeypatch.setattr("pipeline.tools.bench.read_rates.SWEEP_SECONDS", 0.02)


@pytest.fixture
def nothing_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a memory plan count only what the model takes, so that room is as exact as a test asks for."""
    monkeypatch.setattr("pipeline.engine.plan.resident_bytes", lambda: 0)
    monkeypatch.setattr("pipeline.engine.plan.promised_elsewhere", lambda pools: [])


@pytest.fixture
def everything_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no limit is set no weight group stays in memory, though a small model fits into any machine."""
    monkeypatch.setattr("pipeline.engine.plan.SPARE_SHARE", 1.0)


@pytest.fixture(autouse=True)
def nothing_was_loaded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are alike whichever tests ran before: what torch has loaded with another model counts as still to come."""
    monkeypatch.setattr("pipeline.devices.libraries.Libraries.later", lambda libraries: libraries.whole)
    monkeypatch.setattr("pipeline.system.limits._used_before", {})


@pytest.fixture(autouse=True)
def draws_repeat() -> None:
    """A test that fails does so again, alone too: what torch draws without a generator depends on no test before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure of a disk is not for the models that run here otherwise."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def nothing_was_said() -> None:
    """A warning that comes once in a process comes in the test that looks for it."""
    guard._is_new = guard.Once()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, but for PENSTOCK_TESTS=all, some cases, and what compares measured times: a busy machine fails it."""
    left_out = [] if EVERYTHING else [item for item in items if item.get_closest_marker("measures")]
    tests: dict[tuple[Path, str], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname in EACH_VALUE and not EVERYTHING:
            tests.setdefault((item.path, item.originalname), []).append(item)
    for cases in tests.values():
        left_out += beside_each_value(cases)
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def beside_each_value(cases: list[pytest.Function]) -> list[pytest.Function]:
    """All but as few cases as hold each value of each parameter, with values that the fewest before have held."""
    values = {case: {(name, str(value)) for name, value in case.callspec.params.items()} for case in cases}
    uses = Counter({value: 0 for held in values.values() for value in held})
    while not all(uses.values()):
        case = min(values, key=lambda one: sorted(uses[value] for value in values[one]))
        uses.update(values.pop(case))
    return list(values)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A worker sends what a test has logged as UTF-8, and names of files need not be that."""
    return sendable((yield))


def sendable(data: Any) -> Any:
    """The same with a code for each half of a surrogate pair."""
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {key: sendable(value) for key, value in data.items()}
    return type(data)(map(sendable, data)) if isinstance(data, list | tuple) else data


def pytest_collection_finish() -> None:
    """Big libraries are imported by now; without this, each full collection would walk them and block the loop."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(name: str, obj: object) -> None:
    if name.startswith("test_") and inspect.iscoroutinefunction(obj):
        pytest.mark.usefixtures("loop_stays_free")(obj)


@pytest.fixture
async def loop_stays_free(anyio_backend: object) -> AsyncIterator[None]:
    """Fail a test that keeps the event loop busy for longer than that at a stretch."""
    longest, queued_before = 0.0, queued_seconds("self/task/*")

    async def heartbeat() -> None:
        nonlocal longest
        while True:
            started, queued = time.perf_counter(), queued_seconds()
            await asyncio.sleep(0.01)
            lag = time.perf_counter() - started - 0.01
            queued = max(0.0, queued_seconds() - queued)  # it reads 0 while a test lets no file be opened
            longest = max(longest, lag - queued)

    task = asyncio.create_task(heartbeat())
    yield
    task.cancel()
    if longest > LONGEST_BLOCK_SECONDS:  # a thread that holds the interpreter lock may have waited for a core, too
        longest -= max(0.0, queued_seconds("self/task/*") - queued_before)
    if longest > LONGEST_BLOCK_SECONDS:
        pytest.fail(f"the event loop was blocked for {longest * 1000:.0f} ms")
