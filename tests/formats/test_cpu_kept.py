"""Kernels that another process could not compile are compiled in this one, which says so."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.formats.cpu_kept import load

pytest.importorskip("numba")


@pytest.mark.parametrize(
    ("source", "executable", "why"),
    [
        ("raise ValueError('no')", sys.executable, "it ended with 1: ['ValueError: no']"),
        ("", "/nowhere", "FileNotFoundError: "),
        ("", None, "this Python has no executable of its own"),
        ("import pipeline.formats.cpu_kept", sys.executable, ""),
        ("import only_here", sys.executable, ""),
        ("import time; time.sleep(9)", sys.executable, "TimeoutExpired: "),
        ("", sys.executable, ""),
    ],
)
def test_what_no_other_process_compiles_is_compiled_here(
    source: str,
    executable: str | None,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That imports what this one does, not what happens to lie in the current directory."""
    (tmp_path / "pipeline.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    (own := tmp_path / "own").mkdir()
    (own / "only_here.py").write_text("")
    monkeypatch.setattr(sys, "path", [*(path for path in sys.path if path), str(own)])
    monkeypatch.setattr("pipeline.formats.cpu_kept.LONGEST_SECONDS", 0.5 if "sleep" in source else 300.0)
    compiled, cache = list[object](), SimpleNamespace(load_overload=lambda *_: None)
    monkeypatch.setattr(sys, "executable", executable)
    load(SimpleNamespace(_cache=cache, targetctx=None, compile=compiled.append), "signature", source)
    assert compiled == ["signature"]
    assert [record.levelname for record in caplog.records] == (["WARNING"] if why else [])
    if why:
        assert "numba compiles a kernel in this process" in caplog.text
        assert why in caplog.text


def test_to_compile_kernels_for_experts_takes_no_torch() -> None:
    """That would be another second, and twice the memory."""
    check = "import sys; import pipeline.formats.cpu_experts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2], check=True)


def test_what_is_kept_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, cache = list[object](), SimpleNamespace(load_overload=lambda *_: "kept")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("nothing is to be compiled"))
    load(SimpleNamespace(_cache=cache, targetctx=None, compile=compiled.append), "signature", "")
    assert compiled == ["signature"]


def test_every_kernel_for_rows_in_bf16_is_made_ready_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a later number of rows is the first to need would be compiled while a pass computes."""
    products = pytest.importorskip("pipeline.formats.cpu_products", exc_type=ImportError)
    if not products.HAS_DOTS:
        pytest.skip("needs AVX-512 BF16")
    asked = set[tuple[object, ...]]()

    def told(name: str, make: Callable[..., object]) -> None:
        monkeypatch.setattr(products.cpu_tiles, name, lambda *kind: asked.add((name, *kind)) or make(*kind))

    for name in ("products", "decoded_products"):
        told(name, getattr(products.cpu_tiles, name))
    products.multiply_once()
    ready, weight_FD = {*asked}, torch.zeros(products.STEP_ROWS, 2 * products.BYTES, dtype=torch.bfloat16)
    for rows in range(1, 2 * products.FEW_ROWS + 2):
        products.dense_product(weight_FD, torch.ones(rows, weight_FD.shape[1], dtype=torch.bfloat16), None)
    assert asked == ready
