"""Several residual streams on a GPU: one kernel before a half and one behind it. Needs a GPU."""

import pytest
import torch

from pipeline.models import hyper_connections
from pipeline.models.streams import SCALE, Streams

pytest.importorskip("pipeline.models.fused_streams", reason="its kernels need Triton")
pytestmark = pytest.mark.cuda
DEVICE = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("count", "size", "rounds"), [(4, 520, 20), (3, 48, 1), (8, 1200, 3)])
@torch.inference_mode()
def test_streams_are_those_of_torch_and_need_no_company(
    count: int, size: int, rounds: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    kind = Streams(count=count, rounds=rounds, epsilon=1e-6)
    tensors = {one.short: torch.randn(one.shape, device=DEVICE) / 4 for one in kind.of_half("", size)}
    tensors[SCALE] += 1
    hidden_TW = torch.randn(7, count * size, device=DEVICE).to(dtype)
    computed_TD = torch.randn(7, size, device=DEVICE).to(dtype)
    row_TD, mixing_TM = hyper_connections.enter(kind, tensors, hidden_TW, 1e-5)
    added_TW = hyper_connections.leave(kind, mixing_TM, hidden_TW.clone(), computed_TD)
    alone_TW = hyper_connections.leave(kind, mixing_TM[3:4], hidden_TW[3:4].clone(), computed_TD[3:4])
    assert torch.equal(alone_TW, added_TW[3:4])
    monkeypatch.setattr(hyper_connections, "_kernels", lambda *kind: None)
    by_torch = hyper_connections.enter(kind, tensors, hidden_TW, 1e-5)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 3e-2, "rtol": 1e-2}
    torch.testing.assert_close(row_TD, by_torch[0], **close)
    torch.testing.assert_close(mixing_TM, by_torch[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        added_TW, hyper_connections.leave(kind, mixing_TM, hidden_TW.clone(), computed_TD), **close
    )
