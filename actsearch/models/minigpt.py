"""Decoder-only language models of the GPT-2 family (Radford et al. 2019) in the sizes of GRAFS (arXiv:2408.06820)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.errors import SettingsError

INIT_STD = 0.02  # GPT-2's


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and those before it: (B, T, width) → the same shape."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.heads = heads
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP of four times the width, each after a layer normalisation and around a residual."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = CausalAttention(width, heads, dropout, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.fc1 = nn.Linear(width, 4 * width, bias=bias)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.fc2(self.act(self.fc1(self.norm2(x)))))


class GPT(nn.Module):
    """Tokens (B, T) int64, T ≤ context → logits (B, T, vocab_size) of the token that follows each.

    The head shares its weight with the token embedding (Press and Wolf 2017). Initial weights are N(0, 0.02²), those
    that end a residual branch smaller by √(2·layers), as in GPT-2.
    On the CPU torch's fused attention has no second derivative: to differentiate twice (a search of order 2 does not),
    run under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    Raises SettingsError for a size below 1, heads that do not divide the width, and more tokens than the context.
    """

    def __init__(
        self,
        vocab_size: int,
        context: int = 256,
        layers: int = 3,
        heads: int = 3,
        width: int = 192,
        dropout: float = 0.2,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if min(vocab_size, context, layers, heads, width) < 1 or not 0 <= dropout < 1:
            raise SettingsError("a GPT needs sizes of at least 1 and a dropout from 0 to below 1")
        if width % heads:
            raise SettingsError(f"a GPT's heads must divide its width; {heads} do not divide {width}")
        self.context = context
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, bias) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=bias)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                ends_branch = name.endswith(("attention.out.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * layers) if ends_branch else INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.context:
            raise SettingsError(f"{length} tokens do not fit into the model's context of {self.context}")
        x = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device))
        return self.head(self.norm(self.blocks(self.dropout(x))))


gpt = GPT


def minigpt(vocab_size: int, context: int = 256, dropout: float = 0.2, bias: bool = False) -> GPT:
    """3 layers, 3 heads, 192 wide: 11 million parameters with GPT-2's vocabulary. The search model of GRAFS."""
    return GPT(vocab_size, context, 3, 3, 192, dropout, bias)


def tinygpt(vocab_size: int, context: int = 256, dropout: float = 0.2, bias: bool = False) -> GPT:
    """6 layers, 6 heads, 384 wide: 30 million parameters with GPT-2's vocabulary."""
    return GPT(vocab_size, context, 6, 6, 384, dropout, bias)


def smallgpt(vocab_size: int, context: int = 256, dropout: float = 0.2, bias: bool = False) -> GPT:
    """9 layers, 9 heads, 576 wide: 65 million parameters with GPT-2's vocabulary."""
    return GPT(vocab_size, context, 9, 9, 576, dropout, bias)
