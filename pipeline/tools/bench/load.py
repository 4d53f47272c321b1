"""The load of a throughput measurement: random prompts, how many new tokens, and when each request arrives."""

import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Load:
    """Prompts of `shortest` to `longest` random tokens, each continued by `new_tokens`.

    `arrivals_per_second` is the rate of a Poisson process; None submits all requests at once.
    """

    shortest: int
    longest: int
    new_tokens: int
    arrivals_per_second: float | None = None
    seed: int = 0

    @property
    def most_tokens(self) -> int:
        """Positions that one request may come to occupy."""
        return self.longest + self.new_tokens

    @property
    def warm_up(self) -> "Load":
        """A load to run before measuring: the first passes of a process also start threads and choose kernels."""
        return Load(self.shortest, self.longest, min(2, self.new_tokens), seed=self.seed + 1)

    def prompts(self, requests: int, vocabulary_size: int) -> list[list[int]]:
        """Token ids of so many prompts: the same for the same seed and number, others for another number."""
        chance = random.Random(f"prompts {self.seed} {requests}")
        lengths = [chance.randint(self.shortest, self.longest) for _ in range(requests)]
        return [[chance.randrange(vocabulary_size) for _ in range(length)] for length in lengths]

    def arrivals(self, requests: int) -> list[float]:
        """Seconds from the start at which each request is submitted; the first at once."""
        if self.arrivals_per_second is None:
            return [0.0] * requests
        chance = random.Random(f"arrivals {self.seed} {requests}")
        seconds = [0.0]
        while len(seconds) < requests:
            seconds.append(seconds[-1] + chance.expovariate(self.arrivals_per_second))
        return seconds


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """The settings of an arm under a load: numbers of requests, the fields of the `Load`, and settings as of `Config`.

    `offload_folder` takes the weights again, as other programs want them; it is reused.
    """

    folder: str
    offload_folder: str
    requests: list[int]
    load: dict[str, Any]
    options: dict[str, Any]
