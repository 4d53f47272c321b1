"""Routing that nobody has computed. It is not real routing: caches do better or worse on what models choose."""

import numpy as np

from pipeline.tools.routing.recorded_routing import RecordedRouting, RoutedModel


def synthetic_routing(
    *,
    layers: int = 4,
    experts: int = 32,
    chosen: int = 4,
    prompt: int = 8,
    tokens: int = 100,
    skew: float = 1.0,
    persistence: float = 0.3,
    requests: int = 1,
    seed: int = 0,
) -> RecordedRouting:
    """A prompt in one pass, then tokens one by one, of so many requests at once.

    In each layer experts have the weights 1/rank**skew, in an order of its own; of a token's experts each is, with the
    probability `persistence`, one of the token's before.
    """
    random = np.random.default_rng(seed)
    weights = np.log(1.0 / np.arange(1, experts + 1) ** skew)
    orders = np.stack([random.permutation(experts) for _ in range(layers)])
    ids = np.empty((requests * (prompt + tokens), layers, chosen), np.uint16)
    last: dict[int, np.ndarray] = {}
    sizes = [requests * prompt] + [requests] * tokens
    for row in range(len(ids)):
        request = row // prompt if row < requests * prompt else row % requests
        keys = random.gumbel(size=(layers, experts)) + weights  # the largest are a draw without replacement
        drawn = np.take_along_axis(orders, np.argsort(-keys, axis=1)[:, :chosen], axis=1)
        if (before := last.get(request)) is not None:
            for layer in range(layers):
                kept = before[layer][random.random(chosen) < persistence]
                fresh = [one for one in drawn[layer] if one not in kept]
                drawn[layer] = [*kept, *fresh][:chosen]
        last[request] = ids[row] = drawn
    from_prompt = np.zeros(len(ids), np.uint8)
    from_prompt[: requests * prompt] = 1
    rows = np.array([one for one in sizes if one], np.int32)
    model = RoutedModel("synthetic", "0" * 64, tuple(range(layers)), experts, chosen, 9_437_184)
    return RecordedRouting(model, rows, from_prompt, ids)
