"""Attention for training in bfloat16 on a CPU: torch's own, with the gradient taken in float32.

Torch's fused attention has a backward pass in bfloat16 for CPUs that takes three to four times as long as its own in
float32: of a training step of MiniLM on 64 texts of 128 tokens it was one half (LOG, 2026-11-22). The forward pass,
which is fast, stays as it is. Shape letters: B texts, H heads, T tokens, D values of a head.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from quire import device

NAME = "sdpa_gradient_in_float32"
# Models whose attention is transformers' own and no more: some others ask whether theirs is called "sdpa".
_MODELS = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "gpt_neox", "gpt2", "llama", "mistral", "qwen2")
_ATEN = torch.ops.aten


def use(module: nn.Module) -> None:
    """Where training is in bfloat16 on a CPU, have each of `_MODELS` in a module that attends by "sdpa" attend so.

    Nothing of it is saved: a config is written without the name of its attention.
    """
    if device.device().type != "cpu" or device.precision() != torch.bfloat16:
        return
    for part in module.modules():
        if not isinstance(part, PreTrainedModel) or part.config.model_type not in _MODELS:
            continue
        if part.config._attn_implementation == "sdpa":
            part.set_attn_implementation(NAME)


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' "sdpa", whose function of this signature it calls for all but what is told above: (B, H, T, D)
    each to (B, T, H, D)."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    special = any(others.get(name) is not None for name in ("softcap", "position_bias"))  # not of torch's operator
    if dtype == torch.bfloat16 and query.requires_grad and torch.is_grad_enabled() and not special:
        inputs = tuple(x.to(dtype) for x in (query, key, value))
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        causal = bool(causal) and attention_mask is None and query.shape[2] > 1  # as transformers decides it
        added = _added(attention_mask, dtype)
        if _is_torch_s_choice(inputs, added, dropout, causal, scaling):
            return _Attention.apply(*inputs, added, causal, scaling).transpose(1, 2).contiguous(), None
    kept = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kept, **others)


def _is_torch_s_choice(inputs: tuple, added: torch.Tensor | None, *how: Any) -> bool:
    """Whether torch itself would use the operator: not for dropout, fewer key heads, a mask that learns."""
    dropout, causal, scale = how
    return torch._fused_sdp_choice(*inputs, added, dropout, causal, scale=scale) == SDPBackend.FLASH_ATTENTION.value


def _added(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to the scores: torch's operator knows no mask of booleans."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, added, causal: bool, scale: float | None) -> torch.Tensor:
        made, log_sums = _ATEN._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=added, scale=scale
        )
        ctx.save_for_backward(query, key, value, made, log_sums, added)
        ctx.causal, ctx.scale = causal, scale
        return made

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, log_sums, added = ctx.saved_tensors
        found = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient.float(),
            *(x.float() for x in inputs),
            log_sums,
            0.0,
            ctx.causal,
            attn_mask=None if added is None else added.float(),
            scale=ctx.scale,
        )
        return *(x.to(gradient.dtype) for x in found), None, None, None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
