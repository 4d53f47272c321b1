"""Recorded routing comes back from its file as it was, and what is no such file is refused by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.errors import ConfigError
from pipeline.tools.routing.recorded_routing import RoutedModel, read_routing, write_routing
from pipeline.tools.routing.recorder import Recorder
from tests.support.synthetic_routing import synthetic_routing

MODEL = RoutedModel("tiny", "ab" * 32, (1, 3), experts=300, chosen=2, expert_bytes=1000)


def test_a_recorder_keeps_passes_that_went_through_all_layers(tmp_path: Path) -> None:
    recorder = Recorder(MODEL.name, MODEL.digest, MODEL.layers, MODEL.experts, MODEL.expert_bytes)
    with pytest.raises(ConfigError, match="no pass"):
        recorder.recorded()
    prompt, token = np.array([[[4, 299], [0, 1]], [[7, 2], [5, 6]]]), np.array([[[3, 8]], [[9, 299]]])
    for from_prompt, by_layer in (([True, True], prompt), ([False], token)):
        recorder.begin(from_prompt)
        recorder.chosen(1, by_layer[0])
        recorder.begin(from_prompt)  # the pass before was abandoned
        for layer, ids in zip(MODEL.layers, by_layer, strict=True):
            recorder.chosen(layer, ids)
            ids[:] = 0  # a view that the program overwrites
    write_routing(tmp_path / "routing", recorder.recorded())
    found = read_routing(tmp_path / "routing")
    assert found.model == MODEL
    assert [(one.only_prompts, one.unions()) for one in found.passes()] == [
        (True, [[0, 1, 4, 299], [2, 5, 6, 7]]),
        (False, [[3, 8], [9, 299]]),
    ]
    assert found.ids[0].tolist() == [[4, 299], [7, 2]]
    assert found.decoded_tokens == 1


def test_few_experts_take_a_byte_for_each_use(tmp_path: Path) -> None:
    routing = synthetic_routing()
    write_routing(tmp_path / "routing", routing)
    assert (tmp_path / "routing").stat().st_size < routing.ids.size + 2000
    found = read_routing(tmp_path / "routing")
    assert np.array_equal(found.ids, routing.ids)
    assert np.array_equal(found.rows, routing.rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.array([5], np.int32)}, "contradict"),
        ({"ids": np.full((3, 2, 2), 300, np.uint16)}, "contradict"),
        ({"ids": np.zeros((3, 3, 2), np.uint16)}, "contradict"),
        ({"ids": np.zeros((3, 2, 2), np.int64)}, "contradict"),
        ({"from_prompt": None}, "from_prompt"),
        ({"from_prompt": np.array([1, 2, 0], np.uint8)}, "contradict"),
        ({"version": "2"}, "version 1, have"),
        ({"layers": "1"}, "contradict"),
        ({"layers": "["}, "metadata"),
        ({"experts": "many"}, "metadata"),
        ({"digest": None}, "metadata"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, change: dict[str, np.ndarray | str | None], message: str
) -> None:
    path = tmp_path / "routing"
    tensors = {
        "rows": np.array([2, 1], np.int32),
        "from_prompt": np.array([1, 1, 0], np.uint8),
        "ids": np.zeros((3, 2, 2), np.uint16),
    }
    metadata = {"format": "penstock routing", "version": "1", "model": "tiny", "digest": "ab", "layers": "[1, 3]"}
    metadata |= {"experts": "300", "expert_bytes": "1000"}
    save_file(tensors, path, metadata)
    assert replace(read_routing(path).model, digest=MODEL.digest) == MODEL
    changed = {name: change.get(name, value) for name, value in (tensors | metadata).items()}
    parts = [{name: changed[name] for name in part if changed[name] is not None} for part in (tensors, metadata)]
    save_file(parts[0], path, parts[1])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"routing {path}: .*{message}"):
        read_routing(path)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    for name, raw in (("empty", b""), ("text", b"a text that is no header"), ("long", b"\xff" * 64)):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ConfigError, match=f"{name}: is no file of penstock trace-routing"):
            read_routing(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_routing(tmp_path / "none")
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_routing(tmp_path)
