"""Which tokens may come next, whatever their logits: the rules of Hugging Face `generate`.

Shape letters: T tokens of a prompt, L positions that a request may come to have, N of them so far.
"""

from collections import defaultdict, deque
from collections.abc import Iterator

import torch

from pipeline.generation.parameters import SamplingParameters


class TokenRules:
    """Rules tokens out, or all but those that must come, for one sequence, one token after another.

    `prompt_T` are the ids of the prompt, int64.
    """

    def __init__(self, parameters: SamplingParameters, prompt_T: torch.Tensor) -> None:
        words = parameters.bad_words_ids
        forces_first = bool(parameters.forced_bos_token_id) and len(prompt_T) == 1
        self._never = _ids([*parameters.suppress_tokens, *(word[0] for word in words if len(word) == 1)])
        self._not_first = _ids([*parameters.begin_suppress_tokens])
        self._first_step = int(forces_first)
        self._ends = _ids([*parameters.stop_token_ids])
        self._fewest = parameters.min_new_tokens
        self._words: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
        for word in words:
            if len(word) > 1:
                self._words[word[-2]].append(word)
        longest = max(map(len, words), default=1) - 1
        self._recent = deque(prompt_T[max(0, len(prompt_T) - longest) :].tolist(), longest)
        self._forced = {0: parameters.forced_bos_token_id} if forces_first else {}
        if parameters.forced_eos_token_id:
            self._forced[parameters.max_new_tokens - 1] = parameters.forced_eos_token_id
        size = parameters.no_repeat_ngram_size
        self._ngrams = Ngrams(size, prompt_T, len(prompt_T) + parameters.max_new_tokens) if size else None
        self._step = 0

    def forced(self) -> list[int]:
        """The ids one of which must come next, whatever else is ruled out; none where no token is forced."""
        return [*self._forced.get(self._step, ())]

    def ruled_out(self) -> torch.Tensor:
        """The ids that may not come next; some may be there twice."""
        return torch.cat([*self._ruled_out()])

    def took(self, token_id: int) -> None:
        """Take note of the token that came."""
        self._step += 1
        self._recent.append(token_id)
        if self._ngrams is not None:
            self._ngrams.append(token_id)

    def _ruled_out(self) -> Iterator[torch.Tensor]:
        yield self._never
        if self._step < self._fewest:
            yield self._ends
        if self._step == self._first_step:
            yield self._not_first
        if self._recent:
            recent = tuple(self._recent)
            words = self._words.get(recent[-1], ())
            yield _ids([word[-1] for word in words if recent[1 - len(word) :] == word[:-1]])
        if self._ngrams is not None:
            yield self._ngrams.completions()


class Ngrams:
    """Which tokens would complete a run of `size` tokens that has come before.

    Beside the ids stands how many tokens before each position are the last ones of the sequence: `alike_L`. One more
    token takes two operations over the positions so far, which attention reads thousands of bytes of, too; memory is 8
    bytes for a position, and neither grows with `size`.
    """

    def __init__(self, size: int, prompt_T: torch.Tensor, most_tokens: int) -> None:
        self._size = size
        self._ids_L = torch.zeros(most_tokens, dtype=torch.int32)
        self._alike_L = torch.zeros(most_tokens + 1, dtype=torch.int32)
        self._count = max(0, len(prompt_T) - (size - 1))
        self._ids_L[: self._count] = prompt_T[: self._count]
        for token_id in prompt_T[self._count :].tolist():
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Take one more token."""
        same_N = self._ids_L[: self._count] == token_id
        self._alike_L[1 : self._count + 1] = torch.where(same_N, self._alike_L[: self._count] + 1, 0)
        self._ids_L[self._count] = token_id
        self._count += 1

    def completions(self) -> torch.Tensor:
        """The ids that came behind the same `size` - 1 tokens before; some may be there twice."""
        alike_N = self._alike_L[: self._count] >= self._size - 1
        return self._ids_L[: self._count][alike_N].long()


def _ids(token_ids: list[int]) -> torch.Tensor:
    return torch.tensor(token_ids, dtype=torch.int64)
