"""The mixture that recordings of real text come from learns, and an open model says of a text what it says."""

from pathlib import Path

import pytest
import torch
from support.mixture_model import Mixture, Shape
from support.topic_texts import topic_files
from support.trained_mixture import encoded, tokenizer_of, train

from pipeline import Model

SHAPE = Shape(
    vocabulary=300,
    hidden=32,
    layers=2,
    heads=2,
    experts=8,
    chosen=2,
    expert_size=16,
    length=24,
    sequences=4,
    rate=0.01,
    warm_up=1,
)
TEXTS = [f"The text number {index} " + "says it once more. " * 30 for index in range(9)]
TOKENS = 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], float]:
    """A checkpoint, a prompt, and the loss of its tokens."""
    folder, said = tmp_path_factory.mktemp("mixture"), list[str]()
    tokenizer = tokenizer_of(TEXTS, SHAPE.vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = encoded(tokenizer, TEXTS)
    torch.manual_seed(0)
    mixture = Mixture(SHAPE)
    train(mixture, {"prose": ids}, {"prose": ids}, 0.5, said.append)
    first, *_, last = (float(line.split("loss ")[1].split()[0].rstrip(",")) for line in said)
    assert last < first
    mixture.to(torch.bfloat16).save(folder)
    prompt = ids[:TOKENS].tolist()
    with torch.no_grad():
        loss, _, shares = mixture.float()(torch.tensor([prompt]))
    assert shares.sum(1).tolist() == pytest.approx([1] * SHAPE.layers)
    return folder, prompt, float(loss)


async def test_what_was_trained_is_a_model_like_any_other(trained: tuple[Path, list[int], float]) -> None:
    folder, prompt, loss = trained
    async with Model.open(folder, device="cpu", dtype="float32", context_tokens=48, gpu_experts=4) as model:
        output = await model.generate(prompt, max_new_tokens=0, prompt_logprobs=0)
        assert model.tokenizer.decode(prompt[1:]) == TEXTS[0][: len(model.tokenizer.decode(prompt[1:]))]
    assert output.prompt_logprobs is not None
    scores = [one[token] for token, one in zip(prompt, output.prompt_logprobs, strict=True) if one is not None]
    assert len(scores) == TOKENS - 1
    assert -sum(scores) / len(scores) == pytest.approx(loss, abs=1e-3)


def test_files_belong_to_topics_by_their_names(tmp_path: Path) -> None:
    for name in ("a.py", "b.cuh", "c.md", "d.1.gz", "e.json.gz", "LICENSE.txt", "f.so", "g.cmake"):
        (tmp_path / name).touch()
    found = {topic: sorted(path.name for path in each) for topic, each in topic_files([tmp_path]).items()}
    assert found == {
        "python": ["a.py"],
        "c": ["b.cuh"],
        "prose": ["LICENSE.txt", "c.md", "d.1.gz"],
        "markup": ["e.json.gz"],
        "scripts": ["g.cmake"],
    }
