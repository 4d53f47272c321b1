"""What the slices of the head compute: logits of the rows behind which tokens are chosen, and scores of prompts.

And what comes behind them: the choice of these tokens, and the reading of these scores.
"""

import asyncio
import functools
import itertools
from collections.abc import Mapping

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import GroupKey, Message
from pipeline.formats.parts import gives_logits
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.launches import Launch
from pipeline.generation.pass_buffers import PassBuffers
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.prompt_scores import Found, PromptScorer, ScoredRows, ScoredRun
from pipeline.generation.row_sampler import RowSampler
from pipeline.generation.rows_sent import Outcome, RowsSent
from pipeline.generation.sampling import Sampler
from pipeline.groups.catalog import WeightCatalog
from pipeline.models import decoder
from pipeline.models.model_config import ModelConfig
from pipeline.models.row_blocks import RowBlocks


class Head:
    """Of the hidden states of a pass, slice by slice; `logits` first, since `score` overwrites the hidden states."""

    def __init__(
        self,
        config: ModelConfig,
        catalog: WeightCatalog,
        row_blocks: RowBlocks,
        buffers: PassBuffers,
        inputs: PassInputs,
        scorer: PromptScorer,
        sampler: RowSampler,
    ) -> None:
        self.sampler = sampler
        self._config = config
        self._catalog = catalog
        self._row_blocks = row_blocks
        self._buffers = buffers
        self._inputs = inputs
        self._scorer = scorer
        self._first_logits = _first_logits(catalog)

    def begin(self, pass_: GenerationPass) -> None:
        """Tell the device which rows of a pass are scored."""
        pass_.scored = self._scorer.send(pass_.pieces)

    def send(self, pass_: GenerationPass) -> RowsSent:
        """Send what the choices of a pass need, where that has not been done.

        It is done when half of the groups are launched; only later for a pass that began ahead, as the tokens of the
        pass before must be known, and for a measurement that does not compute that group.
        """
        pass_.rows = rows = pass_.rows or self.sampler.send(pass_.last_rows)
        return rows

    def launch(self, lane: str, pass_: GenerationPass) -> RowsSent:
        """Launch the choice of the next tokens behind the logits of the pass."""
        self.sampler.launch(lane, self._buffers.logits_memory, rows := self.send(pass_), pass_.last)
        return rows

    async def outcomes(self, lane: str, pass_: GenerationPass) -> Mapping[Sampler, Outcome]:
        """The next tokens, chosen behind the logits of the pass, when they are known."""
        if pass_.choosing:
            return await self.sampler.choose(lane, self._buffers.logits_memory, self.send(pass_), pass_.last)
        await pass_.last.wait()
        return {}

    async def scores(self, pass_: GenerationPass) -> list[tuple[ScoredRun, Found]]:
        """What the slices say of prompts."""
        return [] if pass_.scored is None else await self._scorer.read(pass_.scored, pass_.last)

    def step(self, pass_: GenerationPass, message: Message[Slot], launch: Launch) -> list[Event]:
        """Launch one slice, of what the pass needs of it."""
        ran: list[Event] = []
        if pass_.choosing:
            rows = self.logit_rows(pass_)
            work = functools.partial(self.logits, message, rows)
            ran.append(launch(message, pass_, pass_.parts[-1], work, repeats=rows))
        if pass_.scored is not None:
            work = functools.partial(self.score, message, pass_.scored)
            ran.append(launch(message, pass_, pass_.parts[-1], work, (pass_.scored.sent,)))
        return ran

    def logit_rows(self, pass_: GenerationPass) -> int:
        """How many rows of logits a pass computes, those of no token too."""
        return self._row_blocks.padded(sum(piece.logit_rows for piece in pass_.pieces))

    def logits(self, message: Message[Slot], rows: int) -> None:
        """One slice of the logits; with the first, the final norm of the rows that get any."""
        weights, first = self._catalog.weights(message), self._first_logits[message.key]
        for begin, end in self._row_blocks.cuts(0, rows):
            normed_RD = self._buffers.normed(begin, end)
            if first == 0:
                hidden_RD = self._buffers.all_hidden[self._inputs.logit_rows(begin, end)]
                normed_RD.copy_(decoder.final_norm(self._config, weights, hidden_RD))
            slice_RV = decoder.output_slice(self._config.outside, weights, normed_RD)
            self._buffers.logits(begin, end)[:, first : first + slice_RV.shape[1]] = slice_RV

    def score(self, message: Message[Slot], scored: ScoredRows) -> None:
        """What one slice says of prompts; with the first, the final norm of their rows.

        These move to the front: none goes where one stands that has not moved yet.
        """
        weights, first = self._catalog.weights(message), self._first_logits[message.key]
        for begin, end in self._scorer.cuts(scored):
            normed_RD = self._buffers.scored(begin, end)
            if first == 0:
                hidden_RD = self._buffers.all_hidden[self._scorer.rows(begin, end)]
                normed_RD.copy_(decoder.final_norm(self._config, weights, hidden_RD))
            slice_RV = decoder.output_slice(self._config.outside, weights, normed_RD)
            self._scorer.add(scored, begin, end, first, slice_RV)

    async def close(self) -> None:
        """End the threads; the lines must have stopped."""
        await asyncio.to_thread(self.sampler.close)


def _first_logits(catalog: WeightCatalog) -> dict[GroupKey, int]:
    """The first row of the output matrix that each slice of the head holds."""
    slices = [key for key in catalog.order if gives_logits(key[1])]
    ends = itertools.accumulate((catalog.matrix_rows(key) for key in slices), initial=0)
    return dict(zip(slices, ends, strict=False))
