"""What a caller can do with an output, beside reading it."""

import dataclasses
import json
import pickle
from array import array
from typing import Any

from pipeline import Output


def test_an_output_is_a_plain_dataclass_whatever_holds_the_ids_of_its_prompt() -> None:
    rest: dict[str, Any] = {"text": "a", "token_ids": (3,), "finish_reason": "length", "logprobs": None}
    output = Output(prompt_token_ids=array("i", [1, 2]), **rest)  # type: ignore[arg-type]  # as a sequence makes it
    assert json.loads(json.dumps(dataclasses.asdict(output)))["prompt_token_ids"] == [1, 2]
    assert "prompt_token_ids=(1, 2)" in repr(output)
    made = Output(prompt_token_ids=(1, 2), **rest)
    assert made == output == pickle.loads(pickle.dumps(output)) == dataclasses.replace(output)
    assert hash(made) == hash(output)
