"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) in the sizes of GRAFS (arXiv:2408.06820)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.errors import SettingsError


class Attention(nn.Module):
    """Multi-head self-attention: (B, T, dim) → (B, T, dim), with `heads` of `head_dim` each and no bias on q, k, v."""

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.heads = heads
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a two-layer MLP, each around a residual connection and after a layer normalisation (pre-norm)."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, head_dim, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.fc2(self.dropout(self.act(self.fc1(self.norm2(x))))))


class ViT(nn.Module):
    """Images (B, in_channels, H, W) → logits (B, num_classes), read from a class token; H, W are fixed by `image_size`.

    On the CPU torch's fused attention has no second derivative: to differentiate twice (a search of order 2 does not),
    run under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    Raises SettingsError if `patch` does not divide both sides, for a size below 1 and for a dropout outside [0, 1).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        dim: int = 512,
        depth: int = 4,
        heads: int = 6,
        head_dim: int = 64,
        mlp_dim: int = 256,
        patch: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels, dim, depth, heads, head_dim, mlp_dim, patch) < 1 or not 0 <= dropout < 1:
            raise SettingsError("a ViT needs sizes of at least 1 and a dropout from 0 to below 1")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height % patch or width % patch:
            raise SettingsError(f"images of {height}×{width} cannot be cut into patches of {patch}×{patch}; set patch")
        self.embed = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 1 + height * width // patch**2, dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(dim, heads, head_dim, mlp_dim, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1) + self.position
        return self.head(self.norm(self.blocks(self.dropout(x))[:, 0]))


vit = ViT


def vit_tiny(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    patch: int = 4,
    dropout: float = 0.1,
) -> ViT:
    """The search model of GRAFS: dim 512, depth 4, 6 heads of 64, MLP 256."""
    return ViT(num_classes, in_channels, image_size, 512, 4, 6, 64, 256, patch, dropout)


def vit_small(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    patch: int = 4,
    dropout: float = 0.1,
) -> ViT:
    """The transfer model of GRAFS: dim 512, depth 6, 8 heads of 64, MLP 512."""
    return ViT(num_classes, in_channels, image_size, 512, 6, 8, 64, 512, patch, dropout)
