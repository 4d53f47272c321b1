"""Which experts each row uses, and how they are weighed: pure.

Letters in names: T tokens of this pass, D hidden, E experts, K experts that a token uses.
"""

import torch

from pipeline.formats.matrix import Weights
from pipeline.models.feed_forwards import Experts


def route(kind: Experts, weights: Weights, normed_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each row, int64 [T, K], the most likely one first, and their weights, fp32 [T, K]."""
    logits_TE = weights.project("router", normed_TD).float()
    scores_TK, ids_TK = torch.topk(torch.softmax(logits_TE, dim=-1), kind.chosen, dim=-1)
    if kind.routing.normalized:
        scores_TK = scores_TK / scores_TK.sum(dim=-1, keepdim=True)
    return ids_TK, scores_TK
