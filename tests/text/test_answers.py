"""An answer is a continuation of its prompt, in its text, too."""

import itertools
from pathlib import Path

import pytest
import tokenizers
from support import tiny_models
from text import small_tokenizers as small
from tokenizers import decoders, models, normalizers

from pipeline import Model


def spaced_words() -> tokenizers.Tokenizer:
    """As many tokens as the tiny models have, in the style of Llama 2; nearly all of them begin with a space."""
    words = map("".join, itertools.product("abcdefghijklmnop", repeat=2))
    tokens = ["<unk>", "▁", *"abcdefghijklmnop", *(f"▁{word}" for word in words)][: tiny_models.VOCABULARY_SIZE]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


@pytest.mark.parametrize("prompt", ["a", "abc no", [1], [60, 70]], ids=str)
async def test_prompt_and_answer_are_together_the_text_of_all_their_tokens(
    prompt: str | list[int], tmp_path: Path
) -> None:
    tiny_models.save("llama_mha", tmp_path)
    reference = spaced_words()
    small.save(reference, tmp_path)
    async with Model.open(tmp_path) as model:
        outputs = await model.generate(prompt, n=3, max_new_tokens=6, ignore_eos=True, temperature=3.0, seed=1)
        for output in outputs:
            before = reference.decode(list(output.prompt_token_ids))
            both = reference.decode([*output.prompt_token_ids, *output.token_ids])
            assert before + output.text == both
        assert any(output.text.startswith(" ") for output in outputs)
        chunks = [chunk.text async for chunk in model.stream(prompt, max_new_tokens=6, ignore_eos=True)]
        greedy = await model.generate(prompt, max_new_tokens=6, ignore_eos=True)
        assert "".join(chunks) == greedy.text
