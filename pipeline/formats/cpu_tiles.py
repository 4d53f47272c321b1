"""Products of rows in bf16, by the instruction of AVX-512 that multiplies 32 items of a row by as many of another one.

It adds neighbours up to 16 sums in fp32. Matrices are in bf16, or have numbers of 4 bits or FP8 that are decoded in
registers, as `cpu_vectors` does. As there, all that a kernel calls is in its file, but for instructions.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.formats import cpu_instructions as cpu
from pipeline.formats.cpu_instructions import BYTES, FLOATS, index_of
from pipeline.formats.cpu_vectors import INT4_KIND, LEVELS, NF4_KIND, ROUNDS
from pipeline.formats.cpu_waiting import CLAIMED, FIRST, WORDS

DECODED, DENSE, FP8_KIND = range(len(LEVELS), len(LEVELS) + 3)
"""Kinds of numbers, beside those of `cpu_vectors`: in bf16, in the cache of a core and in memory, and in e4m3."""
IN_BRAIN = (DECODED, DENSE)
SCALES = (np.float32, np.uint16, np.uint8)  # fp32, the bits of bf16, and exponents of two, which these stand for
POWERS = np.array([*(2.0 ** (exponent - 127) for exponent in range(255)), np.nan], np.float32)
TILE_ROWS, TILE_ROWS_OF_ONE, WIDE_ROWS, WIDE_TOKENS = 4, 8, 2, 8
"""Rows of a matrix that are multiplied at once by several rows of x, and by one, so that adding to a sum need not wait
for the last time; and what is decoded in registers by many: so many rows by so many of x before it is decoded again."""
BLOCK_ROWS, BLOCK_TOKENS, BLOCK_COLUMNS = 32, 64, 2048
"""Blocks whose items and sums fill half of a core's second cache."""


@intrinsic(prefer_literal=True)
def add_up(typing: Any, weights: Any, x_TD: Any, sums: Any, to: Any, at: Any, form: Any, rows: Any, tokens: Any) -> Any:
    """Multiply `rows` rows of a matrix by `tokens` rows of x, and write what comes out, plus bias, in bf16.

    `weights`, and `to`, a bias and what is written, are as `products` takes them. `at` has the first row in the numbers
    and scales, and in the matrix, that of x, and the first pair of columns; `sums` memory, the step to the next row in
    it, where to begin, and whether these columns begin and end the rows. Arrays have no gaps. Each sum is made in one
    order: of every 16th pair of columns, then of those 16.
    """
    shape, kind, how = (rows.literal_value, tokens.literal_value), form[0].literal_value, form[1].literal_value

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        tile = _Tile(context, build, signature.args, given, shape, kind)
        with cgutils.for_range(build, tile.groups) as group:
            tables = []
            for row in () if kind in IN_BRAIN else tile.rows:
                zero, scale = tile.zero_and_scale(row, group.index)
                if kind == FP8_KIND:
                    tables.append(cpu.scaled_bytes(build, scale, ROUNDS[how]))
                    continue
                zero = zero if kind == INT4_KIND else None
                tables.append(cpu.scaled_levels(build, LEVELS[kind], zero, scale, ROUNDS[how], to_dots=True))
            with cgutils.for_range(build, build.udiv(tile.half_group, index_of(BYTES))) as step:
                pair = build.add(build.mul(group.index, tile.half_group), build.mul(step.index, index_of(BYTES)))
                x = [tile.x(token, pair) for token in tile.tokens]
                if kind != DECODED:
                    tile.ask_ahead(pair)
                for row in tile.rows:
                    if kind == FP8_KIND:
                        bits = cpu.looked_up_bytes(build, tables[row], tile.numbers(row, pair))
                        items = build.bitcast(bits, cpu.BRAINS)
                    elif kind in IN_BRAIN:
                        items = tile.items(row, pair)
                    else:
                        bits = cpu.looked_up(build, tables[row], tile.numbers(row, pair), high_first=kind == NF4_KIND)
                        items = build.bitcast(bits, cpu.BRAINS)
                    for token in tile.tokens:
                        tile.add(row, token, x[token], items)
        tile.write()
        return context.get_dummy_value()

    return types.void(weights, x_TD, sums, to, at, form, rows, tokens), code


class _Tile:
    """What `add_up` reads, writes, and keeps in registers: a sum for each of its rows and tokens."""

    def __init__(self, context: Any, build: Any, kinds: Any, given: Any, shape: tuple[int, int], numbers: int) -> None:
        self._build, (self.rows, self.tokens) = build, map(range, shape)
        self._per_pair, self._item_bytes = 1 if numbers < len(LEVELS) else 2, 2 if numbers in IN_BRAIN else 1
        weights, x, sums, to, at, *_ = (
            cgutils.unpack_tuple(build, one) if isinstance(kind, types.BaseTuple) else [one]
            for kind, one in zip(kinds, given, strict=True)
        )
        self._zero_step, self.half_group, self.groups, self._row_pairs, self._scale_shift = weights[4:]
        self._row, self._matrix_row, self._token, self._pair = at
        array_kinds = (*kinds[0].types[:4], kinds[1], kinds[2].types[0], *kinds[3].types)
        arrays = zip(array_kinds, (*weights[:4], *x, sums[0], *to), strict=True)
        opened = [context.make_array(kind)(context, build, array) for kind, array in arrays]
        self._numbers, self._scales, self._meanings, self._zeros, self._x, memory, self._bias, self._out = opened
        (_, row_step, begin, begins, self._ends), self._kept, self._sums = sums, {}, {}
        for place in [(row, token) for row in self.rows for token in self.tokens]:
            index = build.add(begin, build.add(build.mul(row_step, index_of(place[0])), index_of(place[1] * 16)))
            kept = self._kept[place] = build.bitcast(build.gep(memory.data, [index]), FLOATS.as_pointer())
            self._sums[place] = cgutils.alloca_once(build, FLOATS)
            build.store(build.select(begins, ir.Constant(FLOATS, None), build.load(kept, align=4)), self._sums[place])

    def zero_and_scale(self, row: int, group: Any) -> tuple[Any, Any]:
        """Those of a group of columns; a scale is in fp32, or has the bits of bf16, or is a byte with a meaning."""
        build = self._build
        scale_row = build.lshr(build.add(self._row, index_of(row)), self._scale_shift)
        index = build.add(build.mul(scale_row, self.groups), group)
        scale = build.load(build.gep(self._scales.data, [index]))
        if scale.type == cpu.I8:
            scale = build.load(build.gep(self._meanings.data, [build.zext(scale, cpu.INDEX)]))
        elif scale.type == cpu.I16:
            scale = build.bitcast(build.shl(build.zext(scale, cpu.I32), ir.Constant(cpu.I32, 16)), cpu.FLOAT)
        return build.load(build.gep(self._zeros.data, [build.mul(index, self._zero_step)])), scale

    def numbers(self, row: int, pair: Any) -> Any:
        """Where those of a pair of columns lie."""
        begin = self._build.mul(self._build.add(self._row, index_of(row)), self._row_pairs)
        at = self._build.add(begin, self._build.add(self._pair, pair))
        return self._build.gep(self._numbers.data, [self._build.mul(at, index_of(self._per_pair))])

    def ask_ahead(self, pair: Any) -> None:
        """Ask memory for what a step uses of the rows behind these: a CPU does not foresee a few bytes of each."""
        build, count = self._build, index_of(len(self.rows))
        begin = build.mul(build.add(self._row, count), self._row_pairs)
        begin = build.add(begin, build.mul(build.add(self._pair, pair), count))
        begin = build.mul(begin, index_of(self._per_pair))
        for item in range(0, len(self.rows) * BYTES * self._per_pair, cpu.LINE_BYTES // self._item_bytes):
            cpu.ask_for(build, build.gep(self._numbers.data, [build.add(begin, index_of(item))]))

    def items(self, row: int, pair: Any) -> Any:
        """32 numbers that are decoded."""
        return self._load(self._numbers, self._build.add(self._row, index_of(row)), pair)

    def x(self, token: int, pair: Any) -> Any:
        """32 columns of a token."""
        return self._load(self._x, self._build.add(self._token, index_of(token)), pair)

    def add(self, row: int, token: int, x: Any, items: Any) -> None:
        """Multiply, and add up in fp32."""
        sums = self._sums[row, token]
        self._build.store(cpu.multiplied(self._build, self._build.load(sums), x, items), sums)

    def write(self) -> None:
        """Write what comes out, or keep the sums."""
        with self._build.if_else(self._ends) as (then, otherwise):
            with then:
                self._finish()
            with otherwise:
                for place, kept in self._kept.items():
                    self._build.store(self._build.load(self._sums[place]), kept, align=4)

    def _finish(self) -> None:
        """Halves of a sum are added up until one is left, those of 16 sums at once; then the bias."""
        build, sums = self._build, [self._build.load(place) for place in self._sums.values()]
        sums += [ir.Constant(FLOATS, None)] * (16 - len(sums))
        for half in (8, 4, 2, 1):
            low = [begin + lane for begin in range(0, 32, 2 * half) for lane in range(half)]
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [build.fadd(*(cpu.lanes(build, *pair, low, up) for up in (0, half))) for pair in pairs]
        out_columns = cgutils.unpack_tuple(build, self._out.shape)[1]
        for lane, (row, token) in enumerate(self._sums):
            column = build.add(self._matrix_row, index_of(row))
            bias = build.load(build.gep(self._bias.data, [column]))
            value = build.fadd(build.extract_element(sums[0], index_of(lane)), bias)
            index = build.add(build.mul(build.add(self._token, index_of(token)), out_columns), column)
            build.store(build.bitcast(build.fptrunc(value, cpu.BRAIN), cpu.I16), build.gep(self._out.data, [index]))

    def _load(self, array: Any, row: Any, pair: Any) -> Any:
        build = self._build
        index = build.shl(build.add(build.mul(row, self._row_pairs), build.add(self._pair, pair)), index_of(1))
        return build.load(build.bitcast(build.gep(array.data, [index]), cpu.BRAINS.as_pointer()), align=1)


@functools.cache
def products(kind: int, how: int, scaled: int, tokens: int) -> Any:
    """Work of a team: multiply by a matrix of one of the kinds above, `tokens` rows of x at once; those that are left
    over with some that were taken before. The words are those of `cpu_decoding.TileMatrix`, scaled as SCALES says.
    """
    tile_rows, scale_item = {1: TILE_ROWS_OF_ONE, WIDE_TOKENS: WIDE_ROWS}.get(tokens, TILE_ROWS), SCALES[scaled]
    item, per_pair = (np.uint16, 2) if kind == DENSE else (np.uint8, 2 if kind == FP8_KIND else 1)
    length, first = WORDS, FIRST + 1  # of another file: numba's cache looks at this one, and at what a kernel encloses

    @njit(cache=True, nogil=True, error_model="numpy")
    def multiply(address):
        words = carray(cpu.at_address(address), (length,), np.int64)
        rows, count, step, zero_step, half_group, groups, row_pairs = words[first : first + 7]
        numbers, scales, meanings, zeros, x, bias, out = words[first + 7 : first + 14]
        weights = (
            carray(cpu.at_address(numbers), (rows, row_pairs * per_pair), item),
            carray(cpu.at_address(scales), (rows, groups), scale_item),
            carray(cpu.at_address(meanings), (256,), np.float32),
            carray(cpu.at_address(zeros), (rows, groups), np.float32),
            zero_step,
            half_group,
            groups,
            row_pairs,
            0,
        )
        x_TD = carray(cpu.at_address(x), (count, 2 * row_pairs), np.uint16)
        bias_F = carray(cpu.at_address(bias), (rows,), np.float32)
        out_TF = carray(cpu.at_address(out), (count, rows), np.uint16)
        sums, to = (np.empty(tile_rows * tokens * 16, np.float32), 0, 0, True, True), (bias_F, out_TF)
        row = cpu.claim(words, CLAIMED, step)
        while row < rows:
            end = min(row + step, rows)
            while row < end:
                whole = row + tile_rows <= end
                for t in range(0, count, tokens):
                    at = (row, row, min(t, count - tokens), 0)
                    if whole:
                        add_up(weights, x_TD, sums, to, at, (kind, how), tile_rows, tokens)
                    else:
                        add_up(weights, x_TD, sums, to, at, (kind, how), 1, tokens)
                row += tile_rows if whole else 1
            row = cpu.claim(words, CLAIMED, step)

    return multiply


@functools.cache
def decoded_products(tokens: int) -> Callable[..., None]:
    """The same for rows of a matrix in bf16. Blocks of rows, columns and tokens stay in the caches of a core."""

    @njit(cache=True, nogil=True, error_model="numpy")
    def multiply(items_FD, first, x_TD, bias_F, out_TF):
        none, to = np.empty((1, 1), np.float32), (bias_F, out_TF)
        (rows, columns), count, row_step = items_FD.shape, len(x_TD), (BLOCK_TOKENS + tokens) * 16
        memory = np.empty(BLOCK_ROWS * row_step, np.float32)
        for block in range(0, rows, BLOCK_ROWS):
            for begin in range(0, count, BLOCK_TOKENS):
                for column in range(0, columns, BLOCK_COLUMNS):
                    width = min(BLOCK_COLUMNS, columns - column)
                    weights = (items_FD, none, none[0], none, 0, width // 2, 1, columns // 2, 0)
                    row, end = block, min(block + BLOCK_ROWS, rows)
                    while row < end:
                        whole = row + TILE_ROWS <= end
                        for t in range(begin, min(begin + BLOCK_TOKENS, count), tokens):
                            place = (row - block) * row_step + (t - begin) * 16
                            sums = (memory, row_step, place, column == 0, column + width == columns)
                            at = (row, first + row, min(t, count - tokens), column // 2)
                            if whole:
                                add_up(weights, x_TD, sums, to, at, (DECODED, 0), TILE_ROWS, tokens)
                            else:
                                add_up(weights, x_TD, sums, to, at, (DECODED, 0), 1, tokens)
                        row += TILE_ROWS if whole else 1

    return multiply


@functools.cache
def grouped_products(kind: int, how: int, scaled: int) -> Any:
    """Work of a team: multiply several matrices of one shape, each by rows of x of its own: `DENSE` ones, or in FP8.

    The words: rows, columns, groups of columns that share a scale, and how many of the last bits of a row's number do
    not change its row of scales; the rows that a thread claims; how many matrices there are, rows of x, and columns of
    the output; the addresses of a table, of x, bias and output. Of each matrix the table, int64 [matrices, 5], has the
    addresses of numbers and scales, which are scaled as SCALES says, the column of the output where its products begin,
    and where its rows of x begin and end. Rows, and those claimed, are multiples of `TILE_ROWS_OF_ONE`.
    """
    item, scale_item, length, first = np.uint8 if kind == FP8_KIND else np.uint16, SCALES[scaled], WORDS, FIRST + 1

    @njit(cache=True, nogil=True, error_model="numpy")
    def multiply(address):
        words = carray(cpu.at_address(address), (length,), np.int64)
        rows, columns, groups, shift, step, matrices, places, out_columns = words[first : first + 8]
        lines, x, bias, out = words[first + 8 : first + 12]
        table = carray(cpu.at_address(lines), (matrices, 5), np.int64)
        x_PD = carray(cpu.at_address(x), (places, columns), np.uint16)
        bias_F = carray(cpu.at_address(bias), (out_columns,), np.float32)
        out_PF = carray(cpu.at_address(out), (places, out_columns), np.uint16)
        sums = (np.empty(TILE_ROWS * TILE_ROWS * 16, np.float32), 0, 0, True, True)
        none, to, each = np.empty((1, 1), np.float32), (bias_F, out_PF), (rows + step - 1) // step
        pieces, piece = matrices * each, cpu.claim(words, CLAIMED, 1)
        while piece < pieces:
            numbers_address, scales_address, column, begin, end = table[piece // each]
            numbers = carray(cpu.at_address(numbers_address), (rows, columns), item)
            scales = carray(cpu.at_address(scales_address), (rows, groups), scale_item)
            weights = (numbers, scales, POWERS, none, 0, columns // 2 // groups, groups, columns // 2, shift)
            row, stop = piece % each * step, min(piece % each * step + step, rows)
            while row < stop:
                if end - begin == 1:
                    add_up(weights, x_PD, sums, to, (row, column + row, begin, 0), (kind, how), TILE_ROWS_OF_ONE, 1)
                    row += TILE_ROWS_OF_ONE
                elif end - begin < TILE_ROWS:
                    for p in range(begin, end, 2):
                        at = (row, column + row, min(p, end - 2), 0)
                        add_up(weights, x_PD, sums, to, at, (kind, how), TILE_ROWS, 2)
                    row += TILE_ROWS
                elif kind == DENSE or end - begin < WIDE_TOKENS:
                    for p in range(begin, end, TILE_ROWS):
                        at = (row, column + row, min(p, end - TILE_ROWS), 0)
                        add_up(weights, x_PD, sums, to, at, (kind, how), TILE_ROWS, TILE_ROWS)
                    row += TILE_ROWS
                else:
                    for p in range(begin, end, WIDE_TOKENS):
                        at = (row, column + row, min(p, end - WIDE_TOKENS), 0)
                        add_up(weights, x_PD, sums, to, at, (kind, how), WIDE_ROWS, WIDE_TOKENS)
                    row += WIDE_ROWS
            piece = cpu.claim(words, CLAIMED, 1)

    return multiply
