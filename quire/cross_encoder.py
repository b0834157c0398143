"""The cross-encoder: one transformer reads both texts; (a, b) and (b, a) have the same logit.

Saved as a folder that `CrossEncoder(path)` of sentence-transformers loads, made of its own modules alone.
Shape letters: N pairs, B rows of a batch, T tokens, D width of the transformer.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder as Model
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig

from quire import device
from quire.encoder import batch_budget, check_whole, freeze_unused, read_typed
from quire.errors import UserError
from quire.packing import pack, pad


def build_model(folder: str, max_length: int, typed_marks: bool = True) -> Model:
    """A pretrained transformer that reads `max_length` tokens of both texts together, with a new head of one logit.

    With `typed_marks` it reads as `encoder.read_typed` says; a folder whose model does so keeps it.

    The head starts as a distance instead of as noise. With the plain mean m of all token vectors and the mean w
    weighted by position, w - m points from the first text's mean to the second's (both means are linear in the two,
    and w leans to the second). Rotated by a random R, the sum of gelu(R(w - m)) + gelu(-R(w - m)) grows with its
    length; the score is minus that. A classification token learns nothing in the few thousand pairs that this head
    needs to rise above chance (LOG.md). Raises UserError when the model has fewer positions.
    """
    check_length(folder, max_length)
    transformer = Transformer(folder, max_seq_length=max_length, model_kwargs={"use_safetensors": True})
    freeze_unused(transformer)
    if typed_marks:
        read_typed(transformer)
    width = transformer.get_embedding_dimension()
    rotation = torch.linalg.qr(torch.randn(width, width))[0]
    difference = torch.cat([-rotation, rotation], dim=1)  # the pooled vector is (m, w)
    hidden = Dense(
        2 * width,
        2 * width,
        activation_function=nn.GELU(),
        init_weight=torch.cat([difference, -difference]),
        init_bias=torch.zeros(2 * width),
    )
    score = Dense(
        2 * width,
        1,
        activation_function=nn.Identity(),
        init_weight=-torch.ones(1, 2 * width),
        init_bias=torch.zeros(1),
        module_output_name="scores",
    )
    pooling = Pooling(width, pooling_mode=("mean", "weightedmean"))
    return Model(modules=[transformer, pooling, hidden, score], device="cpu")


def check_length(folder: str, max_length: int) -> None:
    """Raise UserError when the model has fewer positions."""
    positions = AutoConfig.from_pretrained(folder, local_files_only=True).max_position_embeddings
    if max_length > positions:
        raise UserError(f"max_length = {max_length}: the model at {folder} has {positions} positions; lower it")


def tokenize_pairs(
    model: Model, pairs: Sequence[tuple[str, str]], max_length: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids and token types, N ragged arrays each, of `[CLS] a [SEP] b [SEP]`, cut to `max_length` (default: the
    model's).

    Truncation takes tokens from the longer side until both fit (`longest_first`): a side shorter than half keeps all
    of its text, and two long sides get half each.
    """
    backend: Tokenizer = model.tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length=max_length or model[0].max_seq_length, strategy="longest_first")
    encodings = backend.encode_batch_fast(list(pairs))
    as_array = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
    return as_array, [np.asarray(encoding.type_ids, dtype=np.int32) for encoding in encodings]


def features(tokens: Sequence[np.ndarray], types: Sequence[np.ndarray], model: Model) -> dict[str, torch.Tensor]:
    """Padded model inputs (B, T)."""
    ids, mask = pad(tokens, model.tokenizer.pad_token_id or 0)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model[0].model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = pad(types, 0)[0]
    return inputs


class CrossEncoder:
    """The model as trained and as served."""

    def __init__(self, model: Model):
        self.model = model

    @classmethod
    def load(cls, folder: str | Path) -> "CrossEncoder":
        """From a folder that `save` wrote, on this process's device. Raises when a weight is missing."""
        model = Model(str(folder), device=str(device.device()), local_files_only=True, trust_remote_code=False)
        check_whole(model, Path(folder))
        return cls(model.eval())

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), config and tokenizer."""
        self.model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)

    @torch.inference_mode()
    def standardise(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Scale the new head on a sample of training pairs: hidden deviation 2, logits of mean 0 and deviation 1."""
        transformer, pooling, hidden, score = self.model
        pooled = pooling(transformer(features(*tokenize_pairs(self.model, pairs), self.model)))["sentence_embedding"]
        hidden.linear.weight.mul_(2 / hidden.linear(pooled).std().clamp(min=1e-6))
        logits = score.linear(hidden.activation_function(hidden.linear(pooled)))
        score.linear.weight.div_(logits.std().clamp(min=1e-6))
        score.linear.bias.copy_(-logits.mean() / logits.std().clamp(min=1e-6))

    @torch.inference_mode()
    def one_order(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Logits (N,) float64 of pairs read in the order given."""
        tokens, types = tokenize_pairs(self.model, pairs)
        lengths = np.fromiter((len(ids) for ids in tokens), dtype=np.int64, count=len(tokens))
        logits = np.zeros(len(pairs))
        with device.autocast():
            for rows in pack(lengths, batch_budget()):
                inputs = features([tokens[r] for r in rows], [types[r] for r in rows], self.model)
                inputs = {key: tensor.to(self.model.device) for key, tensor in inputs.items()}
                logits[rows] = self.model(inputs)["scores"][:, 0].double().cpu().numpy()
        return logits

    def logits(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Logits (N,) float64. Each pair is read once, the texts in their own order, so that (a, b) and (b, a) agree
        to the last bit at half the cost of reading both ways; training reads each pair in random order."""
        return self.one_order([(min(pair), max(pair)) for pair in pairs])
