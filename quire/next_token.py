"""The next-token loss of causal models: at every position of a window, and its mean for training.

Shape letters: N windows, B windows of a batch, L tokens of a window.
"""

import math

import numpy as np
import torch
from torch import nn
from transformers import GPTNeoXForCausalLM, PreTrainedModel

from quire import device

_EVAL_TOKENS = 4_096  # a batch's logits in fp32 stay below a gigabyte at 50,304 words


def token_losses(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of every token given those before it in its window: (B, L) int64 to (B, L-1) float32."""
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
    flat = nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="none")
    return flat.view(len(windows), -1)


def mean_loss(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """The mean of `token_losses`, for training: the logits of all tokens never stand in memory at once.

    torch's chunked linear cross-entropy goes over the tokens in pieces, with the gradient computed on the way: 1.3
    times the speed on a CPU (LOG.md), and room for larger batches on a GPU. A model whose output layer is more than
    a product with a matrix is left to do it its own way.
    """
    if not isinstance(model, GPTNeoXForCausalLM):
        return token_losses(model, windows).mean()
    hidden = model.gpt_neox(input_ids=windows, use_cache=False).last_hidden_state[:, :-1]  # the last predicts nothing
    weight = model.get_output_embeddings().weight.to(hidden.dtype)
    return nn.functional.linear_cross_entropy(
        hidden.flatten(0, 1), weight, windows[:, 1:].flatten(), options=nn.LinearCrossEntropyOptions()
    )


@torch.inference_mode()
def position_losses(model: PreTrainedModel, windows: np.ndarray, batch_size: int | None = None) -> np.ndarray:
    """Loss of each window's tokens 1 ... L-1, each given all before it: (N, L) int64 to (N, L-1) float32 nats.

    The model is evaluated as it stands (dropout off), in the device's own precision.
    """
    was_training = model.training
    model.eval()
    place = next(model.parameters()).device
    size = batch_size or max(1, _EVAL_TOKENS // windows.shape[1])
    losses = np.empty((len(windows), windows.shape[1] - 1), dtype=np.float32)
    for start in range(0, len(windows), size):
        with device.autocast():
            batch = torch.from_numpy(windows[start : start + size]).to(place)
            losses[start : start + size] = token_losses(model, batch).cpu().numpy()
    model.train(was_training)
    return losses


def perplexity(loss: float) -> float:
    """exp of a loss in nats; of one beyond all sense (a run that diverges) the largest that is a number."""
    return math.exp(min(loss, 700.0))
