"""What travels between nodes beside orders: hidden states, names of sections, and errors that any process can read."""

import pickle

import pytest
import torch

from pipeline import Model
from pipeline.cluster.hidden_rows import MOST_OF_ARGUMENT_BYTES, MOST_OF_CALL_BYTES, from_arguments, to_arguments
from pipeline.cluster.section_actor import telling_plainly
from pipeline.cluster.section_calls import layers_of, name_layers
from pipeline.errors import ActorFailed, CheckpointError, ConfigError


@pytest.mark.parametrize("rows", [(1,), (3, 5), (700,), (300, 20)])
def test_rows_arrive_as_they_were(rows: tuple[int, ...]) -> None:
    hidden = [torch.randn(count, 1024).bfloat16() for count in rows]
    arguments = to_arguments(hidden)
    nbytes = sum(rows) * 2048
    assert sum(argument.nbytes for argument in arguments) == nbytes
    if nbytes <= MOST_OF_CALL_BYTES:
        assert max(argument.nbytes for argument in arguments) <= MOST_OF_ARGUMENT_BYTES, "Ray carries it in the call"
    else:
        assert len(arguments) == 1
    arrived = from_arguments(pickle.loads(pickle.dumps(arguments)), [torch.empty_like(one) for one in hidden])
    assert all(torch.equal(one, other) for one, other in zip(arrived, hidden, strict=True))


def test_rows_of_a_pass_that_nobody_needs_are_none() -> None:
    assert to_arguments([]) == []
    with pytest.raises(ValueError, match="need 2048 bytes for 1 rows, have 0"):
        from_arguments([], [torch.empty(1, 1024).bfloat16()])


def test_sections_are_named_by_their_layers() -> None:
    owners = (0, 1, 0, 0, 1, 1, 0)
    assert name_layers(0, owners) == "layers 0, 2 to 3 and the head"
    assert name_layers(1, owners) == "layers 1, 4 to 5"
    assert name_layers(1, (0, 1, 0)) == "layer 1"
    assert layers_of(0, owners) == {0, 2, 3, 6}


class OfATool(Exception):
    """Which only this process knows."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CheckpointError("is truncated"), CheckpointError("is truncated")),
        (ActorFailed("reader", 3, "ffn", OSError(5, "gone")), ActorFailed("reader", 3, "ffn", OSError(5, "gone"))),
        (OfATool("no"), ActorFailed("the section", None, None, RuntimeError("OfATool: no"))),
    ],
)
def test_errors_are_told_in_words_that_all_know(error: Exception, told: Exception) -> None:
    with pytest.raises(type(told)) as raised, telling_plainly():
        raise error
    travelled = pickle.loads(pickle.dumps(raised.value))
    assert str(travelled) == str(told)
    assert repr(travelled.__cause__) == repr(told.__cause__)


async def test_without_ray_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs Ray, which is not installed: pip install 'penstock-llm\[ray\]'"):
        await Model.open("anywhere", cluster="auto")
