"""How many tokens a pass carries: what memory it is worth, and for how long those who run may wait."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import write_small_checkpoint

from pipeline import ConfigError, Model
from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.config import Config
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.port import ONE_PLACE, TWO_PLACES, Place
from pipeline.devices.sim import SimDevice
from pipeline.generation.blueprint import draw_up
from pipeline.generation.model_plan import ModelPlan
from pipeline.generation.pass_size import FEWEST_TOKENS, LEAST_TOKENS, PassRate, PassSize, choose_size, sizes
from pipeline.models.model_config import read_config

Seconds = Callable[[int], float]
PLAIN_SECONDS, MAX_SECONDS, ROOM = 0.4, 0.5, 8192


def computing_binds(tokens: int) -> float:
    return PLAIN_SECONDS + tokens * 0.001


def moving_binds(tokens: int) -> float:
    return max(PLAIN_SECONDS, 0.01 + tokens * 0.0002)


def few_are_slow(tokens: int) -> float:
    """As on a CPU, whose kernels do more per second with more rows."""
    return PLAIN_SECONDS + tokens * (0.001 + 0.002 * 50 / (50 + tokens))


def nothing_is_slow(tokens: int) -> float:
    return PLAIN_SECONDS + tokens * 1e-6


def long_prompt(rate: PassRate, seconds: Seconds, tokens: int) -> list[tuple[int, float]]:
    """The passes of a prompt beside others: tokens and seconds of each."""
    passes = []
    while tokens:
        carried = min(rate.most_tokens(True), tokens)
        passes.append((carried, seconds(carried)))
        rate.took(*passes[-1])
        tokens -= carried
    return passes


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("first", ["a guess", "a whole prompt", "a few tokens", "an accident"])
@pytest.mark.parametrize("curve", [computing_binds, moving_binds, few_are_slow, nothing_is_slow])
def test_a_prompt_takes_few_passes_none_of_which_is_late(curve: Seconds, first: str, noise: float) -> None:
    """Late is more than `max_pass_seconds` longer than a pass without prompts. The first is what is known before."""
    draw = random.Random(3)
    rate = PassRate(PassSize(ROOM, MAX_SECONDS))
    known = {"a guess": (128, 0.1), "a whole prompt": (ROOM, curve(ROOM)), "a few tokens": (5, curve(5))}
    rate.took(*known.get(first, (1024, curve(1024))))
    for _ in range(3):
        rate.took(0, PLAIN_SECONDS)
    if first == "an accident":
        rate.took(1024, 60.0)

    def seconds(tokens: int) -> float:
        return curve(tokens) * draw.uniform(1 - noise, 1 + noise)

    passes = long_prompt(rate, seconds, 4 * ROOM)
    learning = 3 if first == "a guess" or curve is few_are_slow else 0
    assert all(took <= PLAIN_SECONDS + MAX_SECONDS for _, took in passes[learning:]), passes
    fewest = next(count for count in range(1, 10_000) if curve(-(-4 * ROOM // count)) <= PLAIN_SECONDS + MAX_SECONDS)
    fewest = max(fewest, 4)
    assert len(passes) <= 1.7 * fewest + 9, (len(passes), fewest)


@pytest.mark.parametrize(("known", "plain_seconds"), [(0.0, 2.0), (0.3, 2.0), (0.3, 1.5), (0.0, 0.6)])
def test_prompts_do_not_stay_small_where_no_pass_is_without_any(known: float, plain_seconds: float) -> None:
    """What a pass takes without prompts is not known, or no longer true: it may take longer than they may."""
    rate = PassRate(PassSize(ROOM, MAX_SECONDS))
    rate.took(0, known)
    passes = long_prompt(rate, lambda tokens: plain_seconds + tokens * 0.001, 4 * ROOM)
    assert len(passes) < (130 if known else 90), len(passes)
    assert all(took <= plain_seconds + MAX_SECONDS for _, took in passes[2:]), passes


@pytest.mark.parametrize("curve", [computing_binds, moving_binds])
@pytest.mark.parametrize("plain", [[0.4, 0.4, 3.0], [3.0, 0.4], [0.4, 3.0], [3.0]], ids=str)
def test_one_pass_that_an_accident_held_up_makes_no_prompt_late(curve: Seconds, plain: Sequence[float]) -> None:
    """Of those without prompts, such as the first, which loads kernels."""
    rate = PassRate(PassSize(ROOM, MAX_SECONDS))
    rate.took(1024, curve(1024))
    for seconds in plain:
        rate.took(0, seconds)
    passes = long_prompt(rate, curve, 4 * ROOM)
    assert all(took <= PLAIN_SECONDS + MAX_SECONDS for _, took in passes), passes


@pytest.mark.parametrize("other", [1.2, 0.1])
def test_prompts_take_so_much_longer_though_passes_without_them_have_come_to_take_longer_or_less(other: float) -> None:
    rate = PassRate(PassSize(ROOM, MAX_SECONDS))
    long_prompt(rate, computing_binds, ROOM)
    for plain in (PLAIN_SECONDS, other):
        for _ in range(3):
            rate.took(0, plain)
        known = long_prompt(rate, lambda tokens, plain=plain: plain + tokens * 0.001, ROOM)
    assert all(took <= other + MAX_SECONDS for _, took in known), known
    assert len(known) <= 30, "of 21 at best"


def test_passes_that_took_no_time_teach_nothing() -> None:
    rate = PassRate(PassSize(ROOM, MAX_SECONDS))
    for seconds in (0.0, 0.0, 0.25):
        rate.took(LEAST_TOKENS, seconds)
    assert rate.most_tokens(True) > LEAST_TOKENS


def test_a_prompt_alone_takes_all_room_unless_those_who_come_would_wait_for_long() -> None:
    for seconds, tokens in ((0.5, ROOM), (4.0, ROOM), (8.0, ROOM // 2), (400.0, ROOM // 100)):
        rate = PassRate(PassSize(ROOM, MAX_SECONDS))
        rate.took(ROOM, seconds)
        assert rate.most_tokens(False) == tokens


def test_prompts_go_on_whatever_is_allowed_and_take_all_where_nothing_limits_them() -> None:
    rate = PassRate(PassSize(512, 1e-9))
    for _ in range(4):
        rate.took(tokens := rate.most_tokens(True), 30.0 + tokens)
        assert rate.most_tokens(True) == FEWEST_TOKENS
    assert PassRate(PassSize(700, None)).most_tokens(True) == 700
    assert PassRate(PassSize(4096, 1.0)).most_tokens(False) == LEAST_TOKENS, "as nothing is known"
    assert PassRate(PassSize(100, 1.0)).most_tokens(False) == 100


def test_sizes_reach_from_today_to_a_whole_prompt_and_what_saves_nothing_takes_no_memory() -> None:
    assert sizes(100, 64) == [512]
    assert sizes(1500, 64) == [512, 1024, 1500]
    assert sizes(100, 600) == [512, 600]
    assert choose_size({512: 1.0, 1024: 0.5, 2048: 0.4, 4096: 0.399, 8192: 0.6}) == 2048
    assert choose_size({512: 1.0}) == 512


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heavy") / "model"
    shape = {"layers": 6, "hidden_size": 128, "ffn_size": 2048, "heads": 2, "kv_heads": 1, "head_dim": 64}
    make_checkpoint(folder, "llama-3.2-1b", vocabulary_size=300, **shape)
    return folder


def drawn(folder: Path, places: Sequence[Place], **settings: Any) -> ModelPlan:
    memory = {place.name: 1 << 40 for place in places}
    device = SimDevice(places, loads_later=CpuDevice().loads_later, memory=memory)
    with open_checkpoint(folder) as opened:
        return draw_up(read_config(folder), opened, Config(**settings), device).plan


@pytest.mark.usefixtures("nothing_was_there_before")
@pytest.mark.parametrize("places", [ONE_PLACE, TWO_PLACES], ids=len)
def test_a_pass_grows_with_memory_and_never_needs_more_than_with_512_tokens_where_that_is_short(
    places: Sequence[Place], checkpoint: Path
) -> None:
    common: dict[str, Any] = {"context_tokens": 4096, "max_requests": 1}
    setting, name = places[-1].memory_setting, places[-1].name
    least = drawn(checkpoint, places, **common, residency=False, max_tokens_per_pass=512).memory.need(name)
    weights = sum(5 * size for size in (3 * 128 * 2048 * 2, 3 * 128 * 128 * 2))
    found = []
    for share in (0, 0.2, 0.5, 1.0, 2.0, 4.0, 16.0):
        limit = {setting: least + int(share * weights)}
        plan = drawn(checkpoint, places, **common, **limit)
        before = drawn(checkpoint, places, **common, **limit, max_tokens_per_pass=512)
        assert plan.memory.fits()
        assert plan.memory.need(name) <= max(plan.limits[name], before.memory.need(name))
        moves = [sum(len(one.residency.stays(place)) for place in one.slots) for one in (plan, before)]
        assert moves[0] >= moves[1] - 2
        found.append(plan.pass_size.tokens)
    assert found[0] == 512
    assert found == sorted(found)
    assert found[-1] >= 2048


@pytest.mark.parametrize(
    ("settings", "tokens", "seconds", "says"),
    [
        (
            {},
            4096,
            0.5,
            "up to 4,096 tokens; beside running requests as many as delay their next tokens by at most 0.5",
        ),
        ({"max_pass_seconds": 2}, 4096, 2, "by at most 2 s (max_pass_seconds)"),
        ({"max_tokens_per_pass": 100}, 100, None, "up to 100 tokens (max_tokens_per_pass)"),
        ({"max_tokens_per_pass": 9000, "max_pass_seconds": 0.1}, 9000, 0.1, "up to 9,000 tokens; beside"),
    ],
    ids=str,
)
def test_settings_say_what_a_pass_carries_or_leave_it_to_the_plan(
    settings: dict[str, Any], tokens: int, seconds: float | None, says: str, checkpoint: Path
) -> None:
    size = drawn(checkpoint, TWO_PLACES, **settings).pass_size
    assert (size.tokens, size.max_seconds) == (tokens, seconds)
    assert says in str(size)


@pytest.mark.parametrize("value", [0, -1, True, "1", float("nan"), 90_000])
def test_seconds_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^max_pass_seconds: need seconds above 0, at most 86400, have "):
        Config(max_pass_seconds=value)


async def test_a_prompt_that_fits_costs_one_pass_and_its_text_is_that_of_several(tmp_path: Path) -> None:
    write_small_checkpoint(tmp_path / "model", "llama-3.2-1b")
    prompt = [1 + 7 * place % 290 for place in range(1500)]
    answers = []
    for settings, passes in (({}, 1), ({"max_tokens_per_pass": 512}, 3)):
        async with Model.open(tmp_path / "model", device="cpu", **settings) as model:  # type: ignore[arg-type]
            said = {one: model.runtime.describe()[one] for one in ("max_tokens_per_pass", "max_pass_seconds")}
            assert said == ({"max_tokens_per_pass": 512, "max_pass_seconds": None} if settings else said)
            answers.append(await model.generate(prompt, max_new_tokens=3, ignore_eos=True, logprobs=3))
            assert model.statistics().passes == passes + 2
    assert answers[0] == answers[1]
