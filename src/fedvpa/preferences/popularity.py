"""How popular an item is among the training people, to find the pairs where popularity tells nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from fedvpa.preferences.schema import CHOICE, RATING, Judgements


def popularity(judged: Judgements, items: int) -> tuple[Tensor, Tensor]:
    """Per item the share of people for it, from 0 to 1, smoothed by two judgements at the mean.

    Votes: (agreed + 1) / (voted + 2). Choices: (wins + 1) / (comparisons + 2). Ratings: from 0, the lowest that anybody
    gave, to 1, the highest, with two more at the mean of all ratings. Where kinds are mixed the mean is that of both.

    Args:
        judged: everybody's judgements, ratings in any units.
        items: the number of items.

    Returns:
        (items,) float64 popularities, and (items,) the numbers of judgements behind them.
    """
    value = judged.value.double()
    share = (value + 1) / 2
    rated = judged.kind == RATING
    centre = 0.5
    if rated.any():
        low, high = value[rated].min(), value[rated].max()
        share[rated] = (value[rated] - low) / (high - low)
        centre = float((share[rated].sum() + 0.5 * (~rated).sum()) / len(judged))
    choice = judged.kind == CHOICE
    item = torch.cat([judged.first, judged.second[choice]])
    share = torch.cat([share, 1 - share[choice]])
    number = torch.bincount(item, minlength=items)
    return (torch.bincount(item, share, minlength=items) + 2 * centre) / (number + 2), number
