"""What only requests know, for /metrics: how long tokens took."""

from prometheus_client import CollectorRegistry, Counter, Histogram

FIRST_TOKEN_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
TOKEN_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class RequestTimings:
    """Histograms of all requests so far, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._prompt_tokens = Counter("penstock:prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self._first = Histogram(
            "penstock:time_to_first_token_seconds",
            "From the request to its first token.",
            registry=self.registry,
            buckets=FIRST_TOKEN_SECONDS,
        )
        self._later = Histogram(
            "penstock:time_per_output_token_seconds",
            "Seconds per token behind the first, the mean of each request.",
            registry=self.registry,
            buckets=TOKEN_SECONDS,
        )

    def first_token(self, seconds: float, prompt_tokens: int) -> None:
        """A request has got its first token."""
        self._prompt_tokens.inc(prompt_tokens)
        self._first.observe(seconds)

    def later_tokens(self, seconds: float) -> None:
        """A request has ended, whose later tokens took so long each."""
        self._later.observe(seconds)
