"""The model card, written from what a training run did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from corpus import HELD_OUT_PERCENT, MAX_FILE_BYTES, VALIDATION_PERCENT, CompressorRates, Corpus, SourceFile
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run did, as the model card states it."""

    data_version: str
    minutes: float
    steps: int
    tokens_per_step: int
    training_tokens: int
    device: str
    optimizer: str
    dropout: float
    seed: int
    torch_version: str


def write_card(
    folder: Path,
    model: LlamaForCausalLM,
    corpus: Corpus,
    record: TrainingRecord,
    held_out_bits: float,
    compressors: CompressorRates,
    sample: str,
) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sections = (
        introduction(parameters),
        results(held_out_bits, compressors, model.config.max_position_embeddings),
        data(corpus, record.data_version),
        architecture(model.config),
        training(record),
        closing(sample),
    )
    (folder / "MODEL_CARD.md").write_text("\n".join(sections), encoding="utf-8")


def introduction(parameters: int) -> str:
    return f"""# Model card: Penstock's bundled model

A Llama of {parameters:,} parameters that continues Python source code. It is small enough to ship inside a package,
so that a first run needs no download. `examples/bundled_model/train.py` trained it from nothing. Its weights are stored
as bfloat16; the folder is an ordinary Hugging Face one, with a tokenizer in tiktoken's format.
"""


def results(held_out_bits: float, compressors: CompressorRates, context: int) -> str:
    return f"""## Held-out result

| coder of the held-out files | bits per byte, files together | bits per byte, each file on its own |
| --- | --- | --- |
| this model (stored bfloat16 weights) | | **{held_out_bits:.3f}** |
| `xz -9e` | {compressors.xz_together:.3f} | {compressors.xz_alone:.3f} |
| `gzip -9` | {compressors.gzip_together:.3f} | {compressors.gzip_alone:.3f} |

The model's figure is the negative log2 likelihood of all tokens of all files, their ends included, over the files'
UTF-8 bytes. Every file starts from begin-of-text alone; the window of {context} tokens slides by
half its length.
"""


def data(corpus: Corpus, data_version: str) -> str:
    return f"""## Data

The `*.py` files of the standard library of Python {data_version}, its `test` package included; licence: the
Python Software Foundation License Version 2, with the licences of the parts that Python incorporates. Left out: files
over {MAX_FILE_BYTES:,} bytes, files that are not UTF-8, one machine's build records, and copies of files already taken.

| part | files | bytes |
| --- | --- | --- |
| training | {len(corpus.training):,} | {byte_count(corpus.training):,} |
| validation (watched while training) | {len(corpus.validation):,} | {byte_count(corpus.validation):,} |
| held out (measured once, at the end) | {len(corpus.held_out):,} | {byte_count(corpus.held_out):,} |

A file's bucket is the first 8 bytes of the SHA-256 of its relative path, as a big-endian integer, modulo 100: buckets
below {HELD_OUT_PERCENT} are held out, the next {VALIDATION_PERCENT} validate. The vocabulary was learnt from the
training files alone.
"""


def architecture(config: LlamaConfig) -> str:
    return f"""## Architecture

| | |
| --- | --- |
| layers | {config.num_hidden_layers} |
| hidden size, feed-forward size | {config.hidden_size}, {config.intermediate_size} |
| attention heads, key-value heads | {config.num_attention_heads}, {config.num_key_value_heads} |
| context | {config.max_position_embeddings} tokens |
| vocabulary | {config.vocab_size}: byte-level BPE, Llama 3 split pattern, 2 special tokens |
| embedding and output matrix | shared |
"""


def training(record: TrainingRecord) -> str:
    seen = record.steps * record.tokens_per_step
    return f"""## Training

| | |
| --- | --- |
| steps | {record.steps:,} of {record.tokens_per_step:,} tokens |
| tokens seen | {seen:,}: {seen / record.training_tokens:.1f} times the {record.training_tokens:,} training tokens |
| time | {record.minutes:.1f} minutes on one {record.device} |
| optimiser | {record.optimizer} |
| dropout | {record.dropout} on the embedding and on each residual branch |
| seed | {record.seed} |
| PyTorch | {record.torch_version} |
"""


def closing(sample: str) -> str:
    return f"""## Sample

At temperature 0.7; the first line was given.

```python
{sample}
```

## Limits

It writes text that looks like the standard library, not programs that work; it knows no facts, follows no instructions
and speaks no language but what comments and docstrings hold. It may repeat passages of its training files. Held-out
files come from the same library as the training files, and resemble them more than other code does. Use it to try the
pipeline, not for what it says. Its chat template makes one source of all messages, whatever their roles: a message such
as `def fibonacci(n):` is continued.
"""


def byte_count(files: list[SourceFile]) -> int:
    return sum(file.byte_count for file in files)
