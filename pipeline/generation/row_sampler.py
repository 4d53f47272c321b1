"""Chooses the tokens of all rows of a pass at once, where their logits are; only what was asked for comes back."""

import asyncio
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from actors.core.event import Event
from actors.core.message import READY
from actors.core.ports import Copy
from pipeline.devices.lane import Lane
from pipeline.devices.memory import Memory
from pipeline.devices.port import Device
from pipeline.errors import RequestError
from pipeline.generation.choosing import fused
from pipeline.generation.drawing import BINS, COLUMNS, Filters, Scratch, biased, choose, log_probabilities
from pipeline.generation.parameters import MOST_BIASES, MOST_LOGPROBS
from pipeline.generation.rows_sent import CHOSEN, RESULTS, Outcome, RowsSent, Run
from pipeline.generation.sampling import Choice, Sampler
from pipeline.generation.token_tables import MOST_CHANGES, TokenTables, in_both_places
from pipeline.models.ops import infer
from pipeline.system.limits import reached_limit
from pipeline.system.memory_plan import Holding
from pipeline.system.threads import outlast

TOKENS_OF_BLOCK = 1 << 15
"""Logits that are worth computing together for each row of `Device.block_rows`: 32 rows on a CPU, and 256 on a GPU."""


class RowSampler:
    """Its memory is made once: numbers, tables and results in both places, scratch by the logits."""

    def __init__(self, device: Device, max_requests: int, vocabulary_size: int) -> None:
        self._device, self._size = device, vocabulary_size
        self._tables = TokenTables(device, max_requests, vocabulary_size)
        self._host_numbers, self._numbers = in_both_places(device, _numbers_bytes(max_requests))
        self._host_results, self._results = in_both_places(device, _results_bytes(max_requests))
        self._read_results = self._host_results.tensor.view(torch.float64).numpy()
        rows = _scratch_rows(device, max_requests, vocabulary_size)
        memory = device.device_memory(Scratch.nbytes(rows, vocabulary_size))
        self._scratch = Scratch(memory.tensor, rows, vocabulary_size)
        self._row = device.host_memory(vocabulary_size * torch.float32.itemsize)
        self._lane = Lane("sampling")
        self._prepared: Event = READY

    @staticmethod
    def holdings(device: Device, max_requests: int, vocabulary_size: int) -> list[Holding]:
        """The memory that it takes, place by place."""
        rows = _scratch_rows(device, max_requests, vocabulary_size)
        small = _numbers_bytes(max_requests) + _results_bytes(max_requests)
        first, last = device.places[0].name, device.places[-1].name
        row = vocabulary_size * torch.float32.itemsize
        tables = TokenTables.nbytes(max_requests, vocabulary_size)
        return [
            *(Holding("penalty tables", place.name, tables, "max_requests") for place in device.places),
            *(Holding("choices", place.name, small, "max_requests") for place in device.places),
            Holding("choices", first, row, "max_requests"),
            Holding("choices", last, Scratch.nbytes(rows, vocabulary_size), "max_requests"),
        ]

    def send(self, wanted: Sequence[tuple[Sampler, int]]) -> RowsSent:
        """Send what the choices of a pass need: of each sequence, whose row of logits is told, what it has set.

        All of it is known when the pass begins. Tables of prompts, which may be long, are made on a thread.
        """
        rows = RowsSent()
        tabled = [sampler for sampler, _ in wanted if sampler.filters.penalised]
        makes_tables = not all(map(self._tables.has, tabled))
        self._tables.assign(tabled)
        prepare = functools.partial(self._prepare, rows, wanted)
        if makes_tables or not self._prepared.done():
            self._prepared = rows.prepared = self._lane.submit(prepare, ())
        else:
            prepare()
        return rows

    def _prepare(self, rows: RowsSent, wanted: Sequence[tuple[Sampler, int]]) -> None:
        alike: dict[tuple[Filters, int | None], list[tuple[Sampler, list[float]]]] = {}
        changed: list[int] = []
        biases: list[tuple[int, float]] = []
        copies: list[Copy] = []
        for sampler, logit_row in wanted:
            try:
                table, entries = self._tables.update(sampler) if sampler.filters.penalised else (0, ())
                numbers = [logit_row, table, *sampler.settings, sampler.uniform]
            except BaseException as error:  # on a thread of our own it is not meant to end the process
                rows.outcomes[sampler] = _failure(error)
                continue
            if sampler.parameters.logits_processor is not None:
                rows.processed.append((sampler, numbers))
                continue
            if entries is None or len(entries) > MOST_CHANGES:
                length = self._size * torch.int32.itemsize
                copies.append(Copy(table * length, table * length, length))
            else:
                changed += [table * self._size + entry for entry in entries]
            biases += [(logit_row * self._size + token_id, bias) for token_id, bias in sampler.parameters.logit_bias]
            alike.setdefault((sampler.filters, sampler.logprobs), []).append((sampler, numbers))
        for (filters, logprobs), those in alike.items():
            first, last, step = len(rows.samplers), len(rows.samplers) + len(those), self._scratch.rows
            rows.samplers += [sampler for sampler, _ in those]
            rows.numbers += [numbers for _, numbers in those]
            rows.runs += [Run(begin, min(begin + step, last), filters, logprobs) for begin in range(first, last, step)]
        self._upload(rows, changed, biases, copies)

    def _upload(
        self, rows: RowsSent, changed: list[int], biases: list[tuple[int, float]], copies: Sequence[Copy]
    ) -> None:
        """Send the numbers, behind them the changed entries of the tables: where they are, then what they are now.

        Then the biases: the logits to which they are added, then the numbers.
        """
        device, rows.changes, rows.biases = self._device, len(changed), len(biases)
        told = self._tables.view(self._tables.host).view(-1).numpy()[changed]
        told_of_all = np.concatenate([np.array(rows.numbers).ravel(), changed, told, *zip(*biases, strict=True)])
        numbers = self._host_numbers.tensor.view(torch.float64).numpy()[: len(told_of_all)]
        numbers[:] = told_of_all
        sent = device.upload(self._host_numbers, self._numbers, (Copy(0, 0, numbers.nbytes),), ())
        rows.sent = device.upload(self._tables.host, self._tables.device, copies, (sent,)) if copies else sent

    async def choose(self, lane: str, logits: Memory, rows: RowsSent, after: Event) -> dict[Sampler, Outcome]:
        """Choose the tokens on a compute lane, behind what has computed the logits; an error ends one request alone.

        `logits` holds fp32, [rows, V], of which those are looked at that `send` was told.
        """
        await rows.prepared.wait()
        self.launch(lane, logits, rows, after)
        await rows.known.wait()
        self._read(rows)
        for sampler, numbers in rows.processed:
            await self._process(logits, rows, sampler, numbers)
        return rows.outcomes

    def launch(self, lane: str, logits: Memory, rows: RowsSent, after: Event) -> None:
        """Launch the choice, where that has not been done, of rows that are `prepared`."""
        if rows.known is not READY:
            return
        device, rows.chosen = self._device, after
        if rows.samplers:
            work = functools.partial(infer, functools.partial(self._choose, logits, rows))
            rows.chosen = device.launch(lane, work, (rows.sent, after), rows.repeats)
        rows.known = rows.chosen
        if rows.samplers and self._results is not self._host_results:
            copies = (Copy(0, 0, sum(rows.result_counts) * torch.float64.itemsize),)
            rows.known = device.download(self._results, self._host_results, copies, (rows.chosen,))

    def chosen(self, count: int) -> torch.Tensor:
        """The tokens of the first rows of a choice that `goes_on`, [R]; what lies behind its last row is any token."""
        tokens_R = self._results.tensor.view(torch.float64)[: count * RESULTS].view(count, RESULTS)[:, CHOSEN]
        return tokens_R.long().clamp_(0, self._size - 1)

    def _choose(self, logits: Memory, rows: RowsSent) -> None:
        """On the device: first the tables, then the tokens of each run, then its log-probabilities."""
        count = len(rows.samplers)
        numbers = self._numbers.tensor.view(torch.float64)
        numbers_RC, logits_LV = numbers[: count * COLUMNS].view(count, COLUMNS), self._logits(logits)
        tables_SV = self._tables.view(self._tables.device)
        kernels = fused(logits_LV.device, self._size)
        choosing = kernels.choose if kernels else choose
        of_changes = count * COLUMNS + 2 * rows.changes
        if rows.changes:
            changes_2N = numbers[count * COLUMNS : of_changes].view(2, -1)
            tables_SV.view(-1)[changes_2N[0].long()] = changes_2N[1].int()
        of_all, *of_runs = self._results.tensor.view(torch.float64)[: sum(rows.result_counts)].split(rows.result_counts)
        rows_of = [slice(run.begin, run.end) for run in rows.runs]
        chosen_RN = of_all.view(count, RESULTS)
        with biased(logits_LV, numbers[of_changes : of_changes + 2 * rows.biases].view(2, -1)):
            for run, its in zip(rows.runs, rows_of, strict=True):
                chosen_RN[its] = choosing(self._scratch, logits_LV, tables_SV, numbers_RC[its], run.filters)
        for run, its in zip(rows.runs, rows_of, strict=True):
            if run.logprobs is not None:
                given = numbers_RC[its], chosen_RN[its], run.logprobs
                of_runs.pop(0).copy_(log_probabilities(self._scratch, logits_LV, *given).view(-1))

    def _read(self, rows: RowsSent) -> None:
        ends = [*itertools.accumulate(rows.result_counts)]
        results = self._read_results[: ends[-1]].tolist()
        of_all, *of_runs = (results[end - count : end] for count, end in zip(rows.result_counts, ends, strict=True))
        for run in rows.runs:
            width = 0 if run.logprobs is None else 1 + 2 * run.logprobs
            logprobs = of_runs.pop(0) if width else []
            for index in range(run.begin, run.end):
                sampler, place = rows.samplers[index], index - run.begin
                numbers = of_all[index * RESULTS : (index + 1) * RESULTS]
                if run.filters.penalised:
                    self._tables.sent(sampler)
                rows.outcomes[sampler] = self._outcome(sampler, numbers, logprobs[place * width : (place + 1) * width])

    def _outcome(self, sampler: Sampler, numbers: Sequence[float], logprobs: Sequence[float]) -> Outcome:
        likely, logit, token, score = numbers
        if not math.isfinite(logit):
            return RequestError(
                f"numerical: need finite logits; have {logit} at token {int(likely)}; "
                "the weights are damaged, or the dtype overflows: try dtype='float32'"
            )
        if not math.isfinite(score):
            return RequestError(
                f"no token is left after {len(sampler.token_ids)}: suppress_tokens, bad_words_ids, response_format, "
                f"no_repeat_ngram_size, min_new_tokens and logits_processor rule out all {self._size}; "
                "ask for fewer new tokens, or rule out less"
            )
        if sampler.logprobs is None:
            return Choice(int(token), None)
        own, values, ids = logprobs[0], logprobs[1 : 1 + sampler.logprobs], logprobs[1 + sampler.logprobs :]
        return Choice(int(token), {**dict(zip(map(int, ids), values, strict=True)), int(token): own})

    async def _process(self, logits: Memory, rows: RowsSent, sampler: Sampler, numbers: list[float]) -> None:
        """Choose a token after a function of the user's, on a thread, of a copy of the row in host memory."""
        length = self._size * torch.float32.itemsize
        copies = (Copy(int(numbers[0]) * length, 0, length),)
        await self._device.download(logits, self._row, copies, ()).wait()

        def choose_one() -> None:
            try:
                rows.outcomes[sampler] = self._choose_on_host(sampler, [0, *numbers[1:]])
            except BaseException as error:  # on a thread of our own it is not meant to end the process
                rows.outcomes[sampler] = _failure(error)

        work = functools.partial(infer, choose_one)
        await outlast([asyncio.wrap_future(self._lane.submit(work, ()).future)])

    def _choose_on_host(self, sampler: Sampler, numbers: list[float]) -> Outcome:
        memory = torch.empty(Scratch.nbytes(1, self._size), dtype=torch.uint8)
        scratch, logits_1V = Scratch(memory, 1, self._size), self._logits(self._row)
        numbers_1C = torch.tensor([numbers], dtype=torch.float64)
        tables_SV = self._tables.view(self._tables.host)
        biases = sampler.parameters.logit_bias
        with biased(logits_1V, torch.tensor([*zip(*biases, strict=True)], dtype=torch.float64).view(2, -1)):
            chosen_1N = choose(scratch, logits_1V, tables_SV, numbers_1C, sampler.filters, sampler.process)
        logprobs: list[float] = []
        if sampler.logprobs is not None:
            found_1N = log_probabilities(scratch, logits_1V, numbers_1C, chosen_1N, sampler.logprobs)
            logprobs = found_1N[0].tolist()
        return self._outcome(sampler, chosen_1N[0].tolist(), logprobs)

    def _logits(self, memory: Memory) -> torch.Tensor:
        return memory.tensor.view(torch.float32).view(-1, self._size)

    def close(self) -> None:
        """End the thread."""
        self._lane.close()


def _failure(error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    failure = reached_limit(error) or error
    return RequestError(f"choosing a token failed: {type(failure).__name__}: {failure}")


def _numbers_bytes(max_requests: int) -> int:
    return max_requests * (COLUMNS + 2 * MOST_CHANGES + 2 * MOST_BIASES) * torch.float64.itemsize


def _results_bytes(max_requests: int) -> int:
    return max_requests * (RESULTS + 1 + 2 * MOST_LOGPROBS) * torch.float64.itemsize


def _scratch_rows(device: Device, max_requests: int, vocabulary_size: int) -> int:
    """How many rows are worth computing together: the more, the more memory; on a CPU they should stay in its cache."""
    return min(max_requests, max(1, device.block_rows * TOKENS_OF_BLOCK // max(vocabulary_size, 2 * BINS)))
