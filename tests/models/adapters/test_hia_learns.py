"""HiA from its first weights: it learns where a spot is that only the larger view shows.

No language model: a hidden state as long as real ones are asks, a fixed map reads what is added to image
tokens, and a spot's place is right if that place is read the highest. Another image's larger view shows what
can be had without looking.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medloupe.models.adapters import AdapterConfig
from medloupe.models.connectors.mlp import sine_cosine_grid

SIDE, WIDTH, CHANNELS, STEPS, BATCH = 4, 32, 24, 250, 32
PLACES = SIDE * SIDE


class World:
    """Images of one spot. Their tokens say which place they are, their features that and where the spot
    is, behind a part that all features share and that is several times longer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        places_PC = sine_cosine_grid(SIDE, SIDE, 16)
        self.tokens_PD = places_PC @ torch.randn(16, WIDTH) / 4
        self.features_PC = places_PC @ torch.randn(16, CHANNELS) / 4 + 4 * torch.randn(CHANNELS)
        self.spot_C = 2 * torch.randn(CHANNELS)
        self.asked_D = 30 * torch.randn(WIDTH)
        self.read_D = torch.randn(WIDTH) / WIDTH**0.5

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Spots `[N]` and features `[N, P, C]`."""
        spots_N = torch.randint(PLACES, (count,))
        is_spot_NP = F.one_hot(spots_N, PLACES).float()
        return spots_N, self.features_PC + is_spot_NP[..., None] * self.spot_C

    def scores(self, adapter: torch.nn.Module, features_NPC: torch.Tensor) -> torch.Tensor:
        """`[N, P]`: how high each place is read."""
        tokens_NPD = self.tokens_PD.expand(len(features_NPC), -1, -1)
        asked_ND = self.asked_D + torch.randn(len(features_NPC), WIDTH)
        scores: torch.Tensor = (adapter(0, tokens_NPD, asked_ND, features_NPC) - tokens_NPD) @ (
            self.read_D
        )
        return scores


@pytest.mark.parametrize("instruction_aware", [True, False])
def test_it_learns_where_a_spot_is(instruction_aware: bool) -> None:
    world = World()
    config = AdapterConfig.parse(
        {
            "name": "hia",
            "encoder": {"name": "efficientnet_lite0", "image_size": 64, "stride": 16},
            "queries": 16,
            "width": WIDTH,
            "heads": 4,
            "layers": 1,
            "instruction_aware": instruction_aware,
        }
    )
    adapter = config.build(WIDTH, 4)
    layer = adapter.layers[0]  # type: ignore[index]
    layer.detail = torch.nn.Linear(CHANNELS, WIDTH)
    adapter.reset()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(STEPS):
        spots_N, features_NPC = world.draw(BATCH)
        loss = F.cross_entropy(world.scores(adapter, features_NPC), spots_N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        spots_N, features_NPC = world.draw(512)
        looked = world.scores(adapter, features_NPC).argmax(1) == spots_N
        elsewhere = world.scores(adapter, features_NPC.roll(1, 0)).argmax(1) == spots_N
    assert looked.float().mean() > 0.9
    assert elsewhere.float().mean() < 0.2
