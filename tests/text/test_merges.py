"""Every merge list, sensible or not, either gives exactly the reference's tokens or is refused."""

import json
import random
import time

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.text.byte_level import ALPHABET, byte_level_engine
from pipeline.text.merges import Inexact, MergeList


def reference(tokens: list[str], merges: list[tuple[str, str]], ignore_merges: bool) -> Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def draw_lists(rng: random.Random) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens over one to three letters, so that merges overlap and compete; ids in no order."""
    letters = "abc"[: rng.randint(1, 3)]
    tokens, merges = [*letters], list[tuple[str, str]]()
    for _ in range(rng.randint(1, 12)):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if len(left + right) <= 7 and (left, right) not in merges:
            merges.append((left, right))
            tokens += [left + right] * (left + right not in tokens)
    match rng.choice(["as drawn", "as drawn", "every split", "shuffled"]):
        case "every split":
            pairs = [(token[:at], token[at:]) for token in tokens for at in range(1, len(token))]
            merges = [(left, right) for left, right in pairs if left in tokens and right in tokens]
        case "shuffled":
            rng.shuffle(merges)
    unmade = {"".join(rng.choices(letters, k=rng.randint(2, 5))) for _ in range(rng.randint(0, 2))}
    return rng.sample(every := [*ALPHABET, *sorted({*tokens, *unmade} - {*ALPHABET})], len(every)), merges


@pytest.mark.parametrize("seed", range(4))
def test_conversion_is_exact_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    converted = 0
    for _ in range(150):
        (tokens, merges), ignore_merges = draw_lists(rng), rng.random() < 0.5
        tokenizer = reference(tokens, merges, ignore_merges)
        try:
            engine = byte_level_engine(json.loads(tokenizer.to_str()), None)
        except Inexact:
            continue
        converted += 1
        for length in (3, 6, 10, 20, 40, 80, 200):
            text = "".join(rng.choices(rng.choice(["a", "ab", "abc", "abc "]), k=length))
            assert engine.encode(text).tolist() == tokenizer.encode(text).ids, (merges, ignore_merges, text)
    assert converted > 75  # refusing is always exact


def test_a_token_whose_pair_never_meets_is_not_live() -> None:
    vocabulary = {token: token_id for token_id, token in enumerate(["a", "b", "c", "bc", "ab", "abc"])}
    merges = MergeList(vocabulary, [("b", "c"), ("a", "b"), ("ab", "c")])
    assert merges.live == [vocabulary["bc"], vocabulary["ab"]]
    assert MergeList(vocabulary, [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]).live[-1] == vocabulary["abc"]


@pytest.mark.parametrize(
    ("merges", "why"),
    [
        ([("a", "b"), ("a", "b")], "listed twice"),
        ([("a", "x")], "does not join two tokens"),
        ([("b", "a")], "does not join two tokens"),
        ([("a", "b", "c")], "does not join two tokens"),
        ([("ab", "c"), ("a", "b")], "only a later merge makes"),
    ],
)
def test_lists_that_are_refused(merges: list[tuple[str, ...]], why: str) -> None:
    vocabulary = {token: token_id for token_id, token in enumerate(["a", "b", "c", "ab", "abc"])}
    with pytest.raises(Inexact, match=why):
        MergeList(vocabulary, merges)


def test_a_word_one_merge_away_from_being_made_is_refused() -> None:
    vocabulary = {token: token_id for token_id, token in enumerate(["a", "b", "ab", "abab", "ababb"])}
    merges = MergeList(vocabulary, [("a", "b")])
    merges.require_unreachable("ababb")  # ab ab b
    with pytest.raises(Inexact, match=r"'abab' is a word of its own but no merge makes it"):
        merges.require_unreachable("abab")


def require_all_unreachable(merges: MergeList, words: list[str]) -> None:
    for word in words:
        merges.require_unreachable(word)


@pytest.mark.parametrize("words", [["a" * 16_000], ["a" * 1000 + "b" * number for number in range(20)]])
def test_long_words_that_no_merge_makes_are_left_to_the_package(words: list[str]) -> None:
    vocabulary = {token: token_id for token_id, token in enumerate(["a", "b", "aa", *words])}
    merges = MergeList(vocabulary, [("a", "a")])
    started = time.process_time()
    with pytest.raises(Inexact, match="letters, and others are words that no merge makes"):
        require_all_unreachable(merges, words)
    assert time.process_time() - started < 10  # half a minute and more without a bound
