"""On how many threads rows in bf16 are multiplied by matrices on a CPU."""

import threading
from typing import Any

import pytest
import torch

from pipeline.formats import decoding
from pipeline.formats.decoding import decoded_product
from pipeline.formats.fp8 import Float8, Float8Matrix

SIGNATURE = ("int64",)
cpu_products = pytest.importorskip("pipeline.formats.cpu_products", reason="needs numba", exc_type=ImportError)
pytestmark = pytest.mark.skipif(not cpu_products.HAS_DOTS, reason="needs AVX-512 BF16")
ROWS, COLUMNS = 70, 256


def fp8(rows: int) -> Float8Matrix:
    values_FD = torch.ones(rows, COLUMNS).to(torch.float8_e4m3fn)
    return Float8Matrix(Float8("", ("scale",), 1, None), values_FD, torch.ones(rows, 1))


def test_a_thread_is_woken_up_for_so_many_numbers_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "THREAD_NUMBERS", ROWS * COLUMNS)
    monkeypatch.setattr(cpu_products, "MOST_THREADS", 8)
    asked = list[int]()

    monkeypatch.setattr(cpu_products, "do_together", lambda _, most_threads: asked.append(most_threads))
    one, x = fp8(ROWS).encoded(), torch.ones(24, COLUMNS, dtype=torch.bfloat16)
    for rows in (1, 4, 5, 24):
        assert cpu_products.Product(x[:rows], ROWS, None).by_encoded(one)
        cpu_products.dense_product(torch.ones(ROWS, COLUMNS, dtype=torch.bfloat16), x[:rows], None)
        cpu_products.products([one, one], x[:rows], [None, None])
    assert asked == [2, 2, 3, 2, 2, 3, 3, 3, 5, 7, 7, 8]
    asked.clear()
    several = cpu_products.one_of_several(fp8(64).encoded())
    lines = [(*several.addresses, 0, *span) for span in ((0, 1), (1, 10), (10, 24))]
    cpu_products.grouped_products(several.alike, lines, x, 64)
    assert asked == [1 + 64 * (1 + 3 + 4) // ROWS]


def test_what_torch_decodes_is_multiplied_by_on_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "faster", lambda *_: None)
    threads, names = torch.get_num_threads(), set[str]()
    kernel = cpu_products.cpu_tiles.decoded_products(4)

    def multiply(*given: Any) -> None:
        names.add(threading.current_thread().name)
        meet.wait(9)
        kernel(*given)

    meet = threading.Barrier(2)
    monkeypatch.setattr(cpu_products.cpu_tiles, "decoded_products", lambda _: multiply)
    try:
        torch.set_num_threads(2)
        decoded_product(fp8(64), torch.ones(25, COLUMNS, dtype=torch.bfloat16))
    finally:
        torch.set_num_threads(threads)
    assert len(names) == 2


def test_a_kernel_is_compiled_anew_where_its_words_lie_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What numba keeps it finds by the kernel's file, and those are said in another one."""
    tiles = cpu_products.cpu_tiles

    def keys() -> list[Any]:
        made = tiles.products.__wrapped__(tiles.DENSE, 0, 0, 1), tiles.grouped_products.__wrapped__(tiles.DENSE, 0, 0)
        return [one._cache._index_key(SIGNATURE, one.targetctx.codegen()) for one in made]

    before = keys()
    assert keys() == before
    for name in ("WORDS", "FIRST"):
        with monkeypatch.context() as changed:
            changed.setattr(tiles, name, getattr(tiles, name) + 8)
            assert all(one != other for one, other in zip(before, keys(), strict=True))
