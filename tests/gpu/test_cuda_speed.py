"""The arms of `penstock bench speed` on a GPU: each copies and launches in another way, and says the same in fp32."""

from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.checkpoints.make_checkpoint import make_checkpoint
from pipeline.tools.bench import graph_arm, hugging_face_arm, our_arm
from pipeline.tools.bench.pass_arm import PassSettings, Scenario

pytestmark = pytest.mark.cuda
SCENARIOS = (Scenario(prompt_tokens=5), Scenario(requests=3, prompt_tokens=17))


def test_ring_and_graphs_give_the_tokens_of_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    make_checkpoint(folder, "llama-3.2-1b", layers=5, tied_embeddings=False, vocabulary_size=4096, dtype="float32")
    said = {}
    for run, arm in (
        (our_arm.run, "penstock"),
        (hugging_face_arm.run, "transformers"),
        (hugging_face_arm.run, "ring"),
        (graph_arm.run, "graphs"),
    ):
        asked = [asdict(one) for one in SCENARIOS]
        settings = PassSettings(folder=str(folder), offload_folder="", arm=arm, scenarios=asked, device="cuda")
        said[arm] = [passes.token_ids for passes in run(settings)]
    assert said["penstock"] == said["transformers"] == said["ring"] == said["graphs"]
