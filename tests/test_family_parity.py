"""Every family whose layers differ from Llama's against transformers: what it says, and that every flag counts."""

import asyncio
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.cases import EVERYTHING
from support.family_case import older
from support.family_checkpoints import save_family
from support.family_models import CASES
from support.fitting_settings import fitting
from support.kv_places import settings_with_room

from pipeline import Model, Output
from pipeline.engine.policies import POLICIES
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import parse_config

STEPS = 32 if EVERYTHING else 12
COMPARED = range(STEPS) if EVERYTHING else (0, 1, STEPS - 1)
"""The steps whose logprobs are held against transformers, which computes all tokens before anew for each."""
FEWER_STEPS = STEPS if EVERYTHING else 4
"""Where a model is run in another way: most passes are those of the prompt."""
WAYS: dict[str, dict[str, Any]] = {"short passes, few slots": {"gpu_groups": 3, "gpu_experts": 2, "host_experts": 5}}
if EVERYTHING:
    WAYS |= {f"policy {policy}": {"policy": policy, "gpu_groups": 6, "max_tokens_per_pass": 45} for policy in POLICIES}
    WAYS |= {f"{count} slots": {"gpu_groups": count, "residency": False} for count in (1, 2, 7)}
    WAYS |= {f"{count} experts": {"gpu_experts": count, "host_experts": 25 - count} for count in (1, 4, 11, 23)}
    WAYS |= {
        "longer queues": {"queues": {"pinned_stager": 3, "compute_scheduler": 5}},
        "kv in three places": {},
        "residency": {"residency": True},
    }
PROMPT = (*tiny_models.PROMPT, *range(3, 190, 7))
"""40 tokens: longer than every window and chunk, and than the original contexts that are stretched, but one of 50,
which the answer passes."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, in three shards."""
    root = tmp_path_factory.mktemp("families")
    for name in CASES:
        save_family(name, root / name)
    return root


def load(folder: Path, settings: dict[str, Any] | None = None) -> Any:
    """What transformers makes of the checkpoint, with other settings in its config.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = tiny_models.transformers.AutoConfig.from_pretrained(folder)
        if settings is not None:
            config = type(config).from_dict(settings)
        return tiny_models.auto_class(config).from_pretrained(
            folder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
        )


async def generated(folder: Path, steps: int = STEPS, **settings: Any) -> Output:
    async with Model.open(folder, **settings) as model:
        return await model.generate(PROMPT, max_new_tokens=steps, ignore_eos=True, logprobs=tiny_models.VOCABULARY_SIZE)


@functools.cache
def whole(folder: Path) -> Output:
    """What it says where nothing moves, all of a prompt in one pass; asked for once."""
    return asyncio.run(generated(folder, device="cpu"))


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_logprobs_are_those_of_transformers(name: str, folders: Path) -> None:
    """Each token is the likeliest of those that were to come behind all tokens before it."""
    reference, output = load(folders / name), whole(folders / name)
    assert output.logprobs is not None
    ours_SV = torch.tensor(
        [[logprobs[token_id] for token_id in range(tiny_models.VOCABULARY_SIZE)] for logprobs in output.logprobs]
    )
    assert list(output.token_ids) == ours_SV.argmax(-1).tolist()
    for step in COMPARED:
        expected = tiny_models.greedy_anew(reference, (*PROMPT, *output.token_ids[:step]), 1)
        assert expected.token_ids == [output.token_ids[step]]
        torch.testing.assert_close(ours_SV[step], expected.logprobs[0], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("everything_moves", "nothing_was_there_before")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_bits_do_not_depend_on_how_a_model_is_run(name: str, way: str, folders: Path, tmp_path: Path) -> None:
    settings = {"device": "cpu-copy", "max_tokens_per_pass": 5, **fitting(folders / name, WAYS[way])}
    if "kv" in way:
        sizes = {"context_tokens": 112, "kv_tokens": 448, "max_requests": 4}
        settings = settings_with_room(folders / name, tmp_path, device_layers=2, host_layers=2, **sizes, **settings)
    output, expected = asyncio.run(generated(folders / name, FEWER_STEPS, **settings)), whole(folders / name)
    assert output.token_ids == expected.token_ids[:FEWER_STEPS]
    assert output.logprobs == (expected.logprobs or ())[:FEWER_STEPS]


@pytest.mark.parametrize("share_prefixes", [False, True])
@pytest.mark.parametrize("name", CASES if EVERYTHING else ["gemma3", "deepseek_v4"])
def test_bits_do_not_depend_on_company(name: str, share_prefixes: bool, folders: Path) -> None:
    async def together() -> list[Output]:
        async with Model.open(folders / name, device="cpu", share_prefixes=share_prefixes) as model:
            arguments = {"max_new_tokens": STEPS, "ignore_eos": True, "logprobs": tiny_models.VOCABULARY_SIZE}
            first = await model.generate(PROMPT, **arguments)
            prompts = (PROMPT, PROMPT[:33], (*PROMPT[:20], 5), PROMPT[::-1], PROMPT)
            others = await asyncio.gather(*(model.generate(prompt, **arguments) for prompt in prompts))
            return [first, others[0], others[-1]]

    assert asyncio.run(together()) == [whole(folders / name)] * 3


@pytest.mark.parametrize("name", CASES)
def test_every_flag_is_read_and_counts(name: str, folders: Path) -> None:
    """With PENSTOCK_TESTS=all transformers alone is asked if a flag counts: the cases above would notice it missing."""
    stated = json.loads((folders / name / "config.json").read_text())

    @torch.no_grad()
    def logits(settings: dict[str, Any] | None) -> torch.Tensor:
        model = load(folders / name, settings)
        inputs = (torch.tensor([tokens]) for tokens in (PROMPT, PROMPT + PROMPT[:15]))
        return torch.stack([model(input_ids=one, use_cache=False).logits[0, -1] for one in inputs])

    model, unchanged = parse_config(JsonObject("config.json", stated)), logits(None) if EVERYTHING else None
    for path, value in CASES[name].changes.items():
        changed = json.loads(json.dumps(stated))
        *sections, key = path.split(".")
        place = changed
        for section in sections:
            place = place[section]
        assert place[key] != value
        place[key] = value
        assert parse_config(JsonObject("config.json", changed)) != model, f"{path} is not read"
        if unchanged is not None:
            assert (logits(changed) - unchanged).abs().max() > 1e-2, f"{path} does not count"


@pytest.mark.parametrize("name", CASES)
def test_the_older_spelling_says_the_same(name: str, folders: Path) -> None:
    stated = json.loads((folders / name / "config.json").read_text())
    spelt = older(stated, CASES[name])
    assert spelt != stated
    assert parse_config(JsonObject("config.json", spelt)) == parse_config(JsonObject("config.json", stated))
