"""What `penstock convert --text` says that fewer bits cost."""

import json
import math
import re
from pathlib import Path

import pytest
from support import tiny_models

from pipeline import Model
from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.cli import main
from pipeline.tools.convert.bits_per_byte import bits_per_byte


def test_the_table_and_the_text_say_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("import os\n\n\ndef f(x):\n    return x + 1\n" * 4)
    out = tmp_path / "out"
    options = ["--text", str(tmp_path / "text"), "--device", "cpu"]
    assert main(["convert", "bundled", str(out), "--to", "fp8", *options]) == 0
    said = capsys.readouterr()
    assert (
        "15.9 MB become 9.04 MB as compressed-tensors FP8, a scale for each row, but for embedding, norms" in said.err
    )
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith(("0.0261", "0.0262", "0.0263"))][:3] == ["q", "k", "v"]
    assert lines[-3].split() == ["all", "15.9", "MB", "9.04", "MB", "0.569"]
    assert re.fullmatch(r"bits per byte of .*text: 0\.7\d\d\d before, 0\.7\d\d\d after, [+-]\d\.\d\d%", lines[-1])


async def test_bits_per_byte_are_those_of_the_logits_whatever_generation_config_says(tmp_path: Path) -> None:
    shape = {"layers": 2, "hidden_size": 64, "ffn_size": 96, "heads": 4, "kv_heads": 2, "vocabulary_size": 2000}
    make_checkpoint(tmp_path / "in", "llama-3-8b", dtype="float32", **shape)
    rules = {"repetition_penalty": 1.5, "do_sample": True, "temperature": 2.0, "suppress_tokens": [97, 98]}
    (tmp_path / "in" / "generation_config.json").write_text(json.dumps(rules))
    model = tiny_models.transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "in")
    text = "Text with abba, and more of it: äöü. " * 9
    async with Model.open(tmp_path / "in", device="cpu", context_tokens=96) as ours:
        found = await bits_per_byte(ours, text)
        token_ids = ours.tokenizer.encode(text)
    bits = 0.0
    for first in range(1, len(token_ids), 64):
        begin, end = max(0, first - 32), min(first + 64, len(token_ids))
        logprobs = tiny_models.logits(model, token_ids[begin:end]).log_softmax(-1)
        bits -= sum(logprobs[at - 1 - begin, token_ids[at]].item() for at in range(first, end)) / math.log(2)
    assert len(token_ids) > 160
    assert found == pytest.approx(bits / len(text.encode()), rel=1e-5)
