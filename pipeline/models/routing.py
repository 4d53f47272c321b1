"""Which experts each row uses, and how they are weighed: pure.

Letters in names: T tokens of this pass, D hidden, E experts, K experts that a token uses, G groups of experts.
"""

import torch

from pipeline.formats.matrix import Weights
from pipeline.models.feed_forwards import Experts, Routing
from pipeline.models.ops import sigmoid

LEAST_SUM = 1e-20
"""Added to the sum by which weights are divided: sigmoids may all be zero."""


def route(
    kind: Experts, weights: Weights, normed_TD: torch.Tensor, known_TK: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each row, int64 [T, K], the most likely one first, and their weights, fp32 [T, K].

    Where they are `known`, int [T, K], because they follow from the tokens, they are only weighed.
    """
    routing = kind.routing
    logits_TE = weights.project("router", normed_TD.float() if routing.wide else normed_TD).float()
    if routing.scores == "softmax of the chosen":
        chosen_TK, ids_TK = torch.topk(logits_TE, kind.chosen, dim=-1)
        return ids_TK, torch.softmax(chosen_TK, dim=-1).mul_(routing.scale)
    scores_TE = _scores(routing, logits_TE)
    choice_TE = scores_TE + weights.tensors["choice_bias"].float() if routing.choice_bias else scores_TE
    if known_TK is None:
        scores_TK, ids_TK = torch.topk(_of_kept_groups(routing, choice_TE), kind.chosen, dim=-1)
    else:
        ids_TK = known_TK.long()
    if routing.choice_bias or known_TK is not None:
        scores_TK = scores_TE.gather(1, ids_TK)
    if routing.normalized:
        scores_TK /= scores_TK.sum(dim=-1, keepdim=True).add_(LEAST_SUM)
    if kind.scales is not None:
        scores_TK *= weights.tensors["expert_scales"].float()[ids_TK]
    return ids_TK, scores_TK if routing.scale == 1 else scores_TK.mul_(routing.scale)


def _scores(routing: Routing, logits_TE: torch.Tensor) -> torch.Tensor:
    match routing.scores:
        case "sigmoid":
            return sigmoid(logits_TE)
        case "root of softplus":  # log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which cannot overflow
            return logits_TE.abs().neg_().exp_().log1p_().add_(logits_TE.clamp(min=0)).sqrt_()
        case _:
            return torch.softmax(logits_TE, dim=-1)


def _of_kept_groups(routing: Routing, choice_TE: torch.Tensor) -> torch.Tensor:
    """The scores by which experts are chosen, [T, E]: -inf for those of groups that are not kept."""
    if routing.groups == 1:
        return choice_TE
    choice_TGE = choice_TE.unflatten(1, (routing.groups, -1))
    best_TG = choice_TGE.topk(routing.best, dim=-1).values.sum(dim=-1)
    kept_TG = torch.zeros_like(best_TG, dtype=torch.bool).scatter_(1, best_TG.topk(routing.kept, dim=-1).indices, True)
    return torch.where(kept_TG.unsqueeze(-1), choice_TGE, -torch.inf).flatten(1)
