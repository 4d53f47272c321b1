"""The requests of a model on a cluster: sections hear of those that leave while a pass computes them."""

from collections.abc import Callable

from pipeline.errors import RequestError
from pipeline.generation.admission import Admission
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.sequence import RunningSequence


class ClusterAdmission(Admission):
    """As `Admission`; `left` is told of each sequence whose caller has gone."""

    left: Callable[[RunningSequence], None]

    def check(self, parameters: SamplingParameters) -> None:
        """Raise RequestError for what cannot be sent to another machine."""
        if parameters.logits_processor is not None:
            raise RequestError(
                "logits_processor: a function runs in this process alone, and the logits are on another node of the "
                "cluster; leave it out, or open the model without cluster"
            )

    def withdraw(self, sequence: RunningSequence) -> None:
        """As `Admission`; a pass that computes the sequence goes on without it."""
        runs = not sequence.ended
        super().withdraw(sequence)
        if runs:
            self.left(sequence)
