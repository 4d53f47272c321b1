"""What a pass computes, and what that depends on: where it repeats, a device launches it as it has recorded it."""

from collections.abc import Hashable, Sequence

import torch

from actors.core.budget import Slot
from actors.core.message import Message
from pipeline.formats.parts import attends, gives_logits
from pipeline.generation.batching import Piece
from pipeline.generation.generation_pass import GenerationPass, token_ids
from pipeline.generation.head import Head
from pipeline.generation.micro_batches import MicroBatch
from pipeline.generation.pass_buffers import PassBuffers
from pipeline.generation.pass_inputs import PassInputs
from pipeline.generation.row_sampler import RowSampler
from pipeline.groups.catalog import WeightCatalog
from pipeline.models import decoder
from pipeline.models.attention import LayerKV
from pipeline.models.delta_state import LayerState
from pipeline.models.frequencies import frequencies
from pipeline.models.model_config import ModelConfig
from pipeline.models.rotary import rotary
from pipeline.models.row_blocks import RowBlocks
from pipeline.reading.embedding import EmbeddingRows
from pipeline.state.kv import KeyValueCache


class PassWork:
    """Hidden states are written in place, at addresses that never change: so what a group launches for some number of
    rows in the same slot is the same in every pass.
    """

    def __init__(
        self,
        config: ModelConfig,
        catalog: WeightCatalog,
        cache: KeyValueCache,
        embedding: EmbeddingRows | None,
        inputs: PassInputs,
        dtype: torch.dtype,
        row_blocks: RowBlocks,
        buffers: PassBuffers,
        head: Head | None,
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._cache = cache
        self._embedding = embedding
        self._inputs = inputs
        self._dtype = dtype
        self._row_blocks = row_blocks
        self._buffers = buffers
        self._head = head
        self._most_rows = len(buffers.all_hidden) if embedding is None else embedding.most_rows
        device = buffers.all_hidden.device
        self._frequencies_C2 = {rope: frequencies(rope, 0, device) for rope in config.ropes}
        self._alike = [config.layer_kinds.index(kind) for kind in config.layer_kinds]

    def embeds_alike(self, pieces: Sequence[Piece]) -> bool:
        """Whether the embedding is launched with the copies of its inputs as one piece of work, which repeats."""
        rows = self._row_blocks.padded(len(token_ids(pieces)))
        sized = rows in self._row_blocks.repeated and rows <= self._most_rows
        return sized and not any(piece.rope_length for piece in pieces)

    def copy_and_embed(self, pass_: GenerationPass) -> None:
        """Copy the inputs of all rows to the device, and embed them; rows behind the last token may hold anything."""
        if self._embedding is not None:
            self._embedding.copy(pass_.padded_rows)
        self._inputs.copy(pass_.padded_rows)
        self.embed(pass_, pass_.padded_rows)

    def go_on(self, pass_: GenerationPass, sampler: RowSampler) -> None:
        """The embedding of the tokens that were chosen just now, at the next position of each."""
        if self._embedding is not None:
            self._embedding.take(sampler.chosen(pass_.padded_rows))
        self._inputs.move_on(pass_.padded_rows)
        self.embed(pass_, pass_.padded_rows)

    def embed(self, pass_: GenerationPass, filled: int) -> None:
        """Embed so many rows, with zeros behind them, where the embedding is here; compute the turns of all rows."""
        for block in pass_.blocks:
            if self._embedding is not None:
                hidden_TD = self._buffers.hidden(block.begin, block.end)
                end = min(max(filled, block.begin), block.end)
                rows_TD = self._embedding.rows(block.begin, end).decoded(self._dtype)
                hidden_TD[: end - block.begin].unflatten(1, (-1, self._config.hidden_size)).copy_(rows_TD.unsqueeze(1))
                decoder.scale_embedding(self._config.outside, hidden_TD)
                hidden_TD[end - block.begin :] = 0
            positions_T = self._inputs.positions(block.begin, block.end)
            lengths = self._inputs.rope_lengths(block.begin, block.end)
            for rope, turns in block.rotary.items():
                turns.copy_(rotary(rope, positions_T, lengths, self._frequencies_C2[rope]))

    def take_over(self, hidden_TD: torch.Tensor, part: MicroBatch) -> None:
        """The hidden states that another section has computed."""
        self._buffers.hidden(part.begin, part.end).copy_(hidden_TD, non_blocking=True)

    def attention(self, message: Message[Slot], kv: LayerKV | LayerState, part: MicroBatch) -> None:
        """The first half of a layer."""
        weights, layer = self._catalog.weights(message), self._config.layer_kinds[message.layer]
        for block in part.blocks:
            hidden_TD = self._buffers.hidden(block.begin, block.end)
            decoder.attention_half(layer, weights, hidden_TD, kv, block.rows, block.rotary)

    def ffn(self, message: Message[Slot], part: MicroBatch) -> None:
        """The second half of a layer."""
        weights, layer = self._catalog.weights(message), self._config.layer_kinds[message.layer]
        by_formula = self._row_blocks.fixed
        for block in part.blocks:
            hidden_TD = self._buffers.hidden(block.begin, block.end)
            decoder.ffn_half(layer, weights, hidden_TD, by_formula)

    def stretch(self, messages: Sequence[Message[Slot]], part: MicroBatch, logit_rows: int) -> None:
        """Groups one behind the other, of layers whose KV blocks stay on the device."""
        for message in messages:
            if self._head is not None and gives_logits(message.group):
                self._head.logits(message, logit_rows)
            elif attends(message.group):
                self.attention(message, self._cache.layer(message.layer)[0], part)
            else:
                self.ffn(message, part)

    def logit_rows(self, pass_: GenerationPass) -> int:
        """How many rows of logits are computed here, those of no token too."""
        return 0 if self._head is None else self._head.logit_rows(pass_)

    def attention_repeats(self, pass_: GenerationPass, layer: int) -> Hashable:
        """What the launches of an attention depend on beside the rows; None if on more than can be told."""
        kv, kind = self._cache.layer(layer)[0], self._config.layer_kinds[layer]
        launched = tuple(decoder.attention_launches(kind, kv, block.rows) for block in pass_.blocks)
        return None if None in launched else launched

    def stretch_repeats(self, pass_: GenerationPass, messages: Sequence[Message[Slot]]) -> Hashable:
        """The same of groups that stay; None where KV blocks of a layer move. Layers of one kind launch alike."""
        layers = [message.layer for message in messages if attends(message.group)]
        moving = self._cache.rendezvous.layers
        if moving and not set(layers).isdisjoint(moving):
            return None
        of_each = {self._alike[layer]: layer for layer in layers}.values()
        launched = [self.attention_repeats(pass_, layer) for layer in of_each]
        return None if None in launched else (self.logit_rows(pass_), *launched)
