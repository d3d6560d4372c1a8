"""
T2T-ViT (Tokens-to-Token ViT, arXiv 2101.11986) with transformers between its soft splits: "T2T-ViT_t" in Table 2 of the
PVT paper.

Follows `models/t2t_vit.py` and `models/token_transformer.py` of https://github.com/yitu-opensource/T2T-ViT, with timm's
ViT block, which is the one used there.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import nn


class TokenTransformer(nn.Module):
    """One layer of attention with one head, to fewer channels: its shortcut is the value."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.norm_1 = nn.LayerNorm(in_channels)
        self.query_key_value = nn.Linear(in_channels, 3 * channels, bias=False)
        self.projection = nn.Linear(channels, channels)
        self.norm_2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))
        self.scale = in_channels**-0.5  # as there, though keys have `channels`

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, in_channels) to (batch, tokens, channels)."""
        query, key, value = self.query_key_value(self.norm_1(tokens)).chunk(3, dim=2)
        context = nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        tokens = value + self.projection(context)
        return tokens + self.mlp(self.norm_2(tokens))


class T2TViT(nn.Module):
    """
    Image classifier. Three overlapping soft splits, with a [`TokenTransformer`] between them, lead from 4x4 pixels per
    token to 16x16; a ViT follows.

    Args:
        channels: of the ViT.
        depth: blocks of the ViT.
        num_heads: attention heads of the ViT.
        image_size: height and width in pixels, which are fixed.
        num_classes: number of classes.
        token_channels: channels between the soft splits.
    """

    positions: torch.Tensor

    def __init__(
        self,
        channels: int,
        depth: int,
        num_heads: int,
        image_size: int = 224,
        num_classes: int = 1000,
        token_channels: int = 64,
    ):
        super().__init__()
        self.splits = nn.ModuleList(
            (nn.Unfold(7, stride=4, padding=2), nn.Unfold(3, stride=2, padding=1), nn.Unfold(3, stride=2, padding=1))
        )
        self.transformers = nn.ModuleList(
            (TokenTransformer(3 * 49, token_channels), TokenTransformer(9 * token_channels, token_channels))
        )
        self.projection = nn.Linear(9 * token_channels, channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.register_buffer("positions", sinusoids(1 + (image_size // 16) ** 2, channels), persistent=False)
        self.blocks = nn.Sequential(*(Block(channels, num_heads, mlp_ratio=3.0, qkv_bias=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, 3, image_size, image_size) to logits (batch, num_classes)."""
        tokens = self.splits[0](pixel_values).transpose(1, 2)
        for transformer, split in zip(self.transformers, self.splits[1:]):
            tokens = transformer(tokens)
            side = round(tokens.shape[1] ** 0.5)
            tokens = split(tokens.transpose(1, 2).unflatten(2, (side, side))).transpose(1, 2)
        tokens = self.projection(tokens)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
        return self.classifier(self.norm(self.blocks(tokens))[:, 0])


def sinusoids(positions: int, channels: int) -> torch.Tensor:
    """The sine and cosine code of "Attention is all you need", (1, positions, channels)."""
    rates = 10000.0 ** (-2 * (torch.arange(channels) // 2) / channels)
    angles = torch.arange(positions)[:, None] * rates
    is_even = torch.arange(channels) % 2 == 0
    return torch.where(is_even, angles.sin(), angles.cos())[None]


__all__ = ["T2TViT", "TokenTransformer"]
