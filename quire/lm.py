"""Small GPT-NeoX language models from random weights, and their loss by position in the context.

Shape letters: N windows, L tokens of a window, T = L - 1 predictions.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from quire import device
from quire.config import Config
from quire.errors import UserError

# Layers, width, heads. pythia-70m as published (Biderman et al. 2023, table 1); micro trains in a minute on two cores.
SIZES = {"micro": (4, 128, 4), "pythia-14m": (6, 128, 4), "pythia-70m": (6, 512, 8), "pythia-160m": (12, 768, 12)}
_BATCH_TOKENS = 16_384  # of one forward pass when evaluating on a CPU; a GPU takes eight times as many


class LmModel(Config):
    """The shape of a GPT-NeoX: a size by name, or a size of one's own."""

    size: Literal["micro", "pythia-14m", "pythia-70m", "pythia-160m"] | None = "micro"
    num_layers: int | None = Field(default=None, gt=0, description="with width and num_heads, instead of a size")
    width: int | None = Field(default=None, gt=0)
    num_heads: int | None = Field(default=None, gt=0)
    max_positions: int = Field(default=2048, gt=0)
    tied: bool = Field(default=False, description="one matrix for input and output")


def shape(model: LmModel) -> tuple[int, int, int]:
    """Layers, width and heads. Raises UserError for half a shape, or heads that do not divide the width."""
    own = (model.num_layers, model.width, model.num_heads)
    given = [value for value in own if value is not None]
    if len(given) not in (0, 3) or (not given and model.size is None):
        raise UserError("model: give a size, or num_layers, width and num_heads together")
    layers, width, heads = own if given else SIZES[model.size]
    if width % heads or (width // heads) % 8:
        raise UserError(f"model.width = {width}, num_heads = {heads}: a head must have a multiple of 8 numbers")
    return layers, width, heads


def build_lm(model: LmModel, vocab_size: int, seed: int) -> GPTNeoXForCausalLM:
    """Random weights in float32, a function of shape, vocabulary and seed alone.

    float32 whatever a published config says: Pythia's says float16, whose weights turn to NaN in the first AdamW step
    (eps 1e-8 is zero there).
    """
    layers, width, heads = shape(model)
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=model.max_positions,
        rotary_pct=0.25,
        use_parallel_residual=True,
        tie_word_embeddings=model.tied,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    made = GPTNeoXForCausalLM(config).float()
    torch.random.set_rng_state(state)
    return made


def token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats (N, T) of each token given those before it, from logits (N, L, V) and ids (N, L)."""
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    ).view(len(ids), -1)


@torch.inference_mode()
def position_losses(model: nn.Module, windows: np.ndarray) -> np.ndarray:
    """Losses (N, T) float32 in nats: column i is the loss of token i + 1 given tokens 0 to i."""
    where = next(model.parameters()).device
    rows = max(1, _BATCH_TOKENS * (8 if where.type == "cuda" else 1) // windows.shape[1] // 4)
    losses = np.zeros((len(windows), windows.shape[1] - 1), dtype=np.float32)
    with device.autocast():
        for start in range(0, len(windows), rows):
            ids = torch.from_numpy(windows[start : start + rows]).to(where)
            losses[start : start + rows] = token_losses(model(input_ids=ids).logits, ids).cpu().numpy()
    return losses
