"""A stream: guests sit down two by two."""

from typing import Annotated

import torch

from nested.config import Bound
from nested.errors import UserError
from nested.streams.arrange import split
from nested.streams.stream import Source, Stream


def tea_party(
    *,
    guests: Annotated[int, Bound(ge=2)] = 4,
    cups: Annotated[int, Bound(ge=10)] = 60,
    seed: int | None = None,
) -> Stream:
    """Gaussian clouds of cups around the place of each guest."""
    if guests % 2:
        raise UserError(f"{guests} guests cannot sit two by two", key="stream.guests", seen=guests)
    g = torch.Generator().manual_seed(seed or 0)
    y = torch.arange(guests * cups) % guests
    x = 3 * torch.eye(guests)[y] + 0.5 * torch.randn(len(y), guests, generator=g)
    return split(Source("tea_party", x, y), n_experiences=guests // 2, seed=seed)
