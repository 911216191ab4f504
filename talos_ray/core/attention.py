"""nn.MultiheadAttention spelled out, so that its packed projections can be watched or replaced."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Forward = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]  # takes what nn.MultiheadAttention takes


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to an agreement before softmax: of a mask of truth values, -inf where it is true."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def _joined_masks(
    attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, heads: int, x: torch.Tensor
) -> torch.Tensor | None:
    """Both masks of a call for queries x [n, t, d] as one that broadcasts to [n, heads, t, s]; None where nothing is
    masked."""
    mask = _additive(attn_mask, x.dtype)
    if mask is not None and mask.dim() == 3:  # [n * heads, t, s]
        mask = mask.view(x.shape[0], heads, x.shape[1], -1)
    ignored = _additive(key_padding_mask, x.dtype)  # [n, s]
    if ignored is None:
        return mask
    padding = ignored[:, None, None, :]
    return padding if mask is None else mask + padding


def attention(m: nn.MultiheadAttention, linear: Linear) -> Forward:
    """A forward for `m` that computes its projections as `linear(x [n, t, d], weight, bias)`.

    For self-attention, and for queries that attend to something else, where the packed projection is used twice. Any
    other call goes to `m`'s own forward.
    """
    own = type(m).forward

    def projected(x: torch.Tensor) -> torch.Tensor:
        """x [n, t, d] -> its queries, keys and values, [3, n, heads, t, d / heads]."""
        n, _, d = x.shape
        packed = linear(x, m.in_proj_weight, m.in_proj_bias)  # [n, t, 3 * d]
        return packed.view(n, -1, 3, m.num_heads, d // m.num_heads).permute(2, 0, 3, 1, 4)

    def forward(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if query.dim() != 3 or key is not value:
            return own(
                m, query, key, value, key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
                average_attn_weights=average_attn_weights, is_causal=is_causal,
            )  # fmt: skip
        x = query if m.batch_first else query.transpose(0, 1)  # [n, t, d]
        y = key if m.batch_first else key.transpose(0, 1)  # [n, s, d]
        mask = _joined_masks(attn_mask, key_padding_mask, m.num_heads, x)
        q, k, v = projected(x)
        if query is not key:
            _, k, v = projected(y)
        # Under autocast the projections are narrower than the inputs that the mask was made for.
        mask = None if mask is None else mask.to(q.dtype)
        dropout = m.dropout if m.training else 0.0
        weights = None
        if need_weights:  # [n, heads, t, s], as m's own forward returns them; no fused kernel gives these
            agreement = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
            masked = agreement + (0 if mask is None else mask)
            weights = F.dropout(masked.softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        joined = mixed.transpose(1, 2).reshape(x.shape)  # [n, t, d]: the heads side by side
        out = linear(joined, m.out_proj.weight, m.out_proj.bias)
        return (out if m.batch_first else out.transpose(0, 1)), weights

    return forward
