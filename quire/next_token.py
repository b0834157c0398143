"""The next-token loss of causal models: at every position of a window, and its mean for training.

Shape letters: N windows, B windows of a batch, L tokens of a window.
"""

import math

import numpy as np
import torch
from torch import nn
from transformers import GPTNeoXForCausalLM, PreTrainedModel

from quire import device

_EVAL_TOKENS = 4_096  # on a CPU: a batch's logits in fp32 stay below a gigabyte at 50,304 words
_EVAL_TOKENS_GPU = 65_536  # at most
_LOGIT_BYTES = 12  # of one word at one position: the logit in bf16 and fp32, its logarithm of softmax, some to spare


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

    The model is evaluated as it stands (dropout off), in the device's own precision. Losses stay on the device until
    the last are known: a GPU waits for no copy on the way.
    """
    was_training = model.training
    model.eval()
    place = next(model.parameters()).device
    size = batch_size or max(1, _eval_tokens(place, model.config.vocab_size) // windows.shape[1])
    losses = torch.empty((len(windows), windows.shape[1] - 1), device=place)
    for start in range(0, len(windows), size):
        with device.autocast():
            batch = torch.from_numpy(windows[start : start + size]).to(place)
            losses[start : start + size] = token_losses(model, batch)
    model.train(was_training)
    return losses.cpu().numpy()


def _eval_tokens(place: torch.device, vocab_size: int) -> int:
    """Tokens of a batch of evaluation. On a GPU its logits take up to an eighth of the memory, all of it and not what
    is free: a resumed run has the batches, and so the rounding, of the one before."""
    if place.type != "cuda":
        return _EVAL_TOKENS
    memory = torch.cuda.get_device_properties(place).total_memory
    return min(_EVAL_TOKENS_GPU, memory // 8 // (_LOGIT_BYTES * vocab_size))


def perplexity(loss: float) -> float:
    """exp of a loss in nats; of one beyond all sense (a run that diverges) the largest that is a number."""
    return math.exp(min(loss, 700.0))
