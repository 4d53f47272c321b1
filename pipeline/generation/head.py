"""What the slices of the head compute: logits of the rows behind which tokens are chosen, and scores of prompts."""

import itertools

from actors.core.budget import Slot
from actors.core.message import GroupKey, Message
from pipeline.formats.parts import gives_logits
from pipeline.generation.pass_buffers import PassBuffers
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.prompt_scores import PromptScorer, ScoredRows
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
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._row_blocks = row_blocks
        self._buffers = buffers
        self._inputs = inputs
        self._scorer = scorer
        self._first_logits = _first_logits(catalog)

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
            normed_RD = self._buffers.hidden(begin, end)
            if first == 0:
                hidden_RD = self._buffers.all_hidden[self._scorer.rows(begin, end)]
                normed_RD.copy_(decoder.final_norm(self._config, weights, hidden_RD))
            slice_RV = decoder.output_slice(self._config.outside, weights, normed_RD)
            self._scorer.add(scored, begin, end, first, slice_RV)


def _first_logits(catalog: WeightCatalog) -> dict[GroupKey, int]:
    """The first row of the output matrix that each slice of the head holds."""
    slices = [key for key in catalog.order if gives_logits(key[1])]
    ends = itertools.accumulate((catalog.matrix_rows(key) for key in slices), initial=0)
    return dict(zip(slices, ends, strict=False))
