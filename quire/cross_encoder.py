"""The cross-encoder: one transformer reads both texts; a pair's logit is the mean over both orders.

Saved as a folder that `CrossEncoder(path)` of sentence-transformers and `AutoModelForSequenceClassification` load.
Shape letters: N pairs, B rows of a batch, T tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from quire import device
from quire.encoder import batch_budget
from quire.packing import pack, pad


def build_model(folder: str, max_length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained encoder with a new one-logit head, and its tokenizer with `max_length` for the joint sequence."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, use_safetensors=True, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.model_max_length = min(max_length, model.config.max_position_embeddings)
    return model, tokenizer


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids and token types, N ragged arrays each, of `[CLS] a [SEP] b [SEP]`.

    Truncation takes tokens from the longer side until both fit (`longest_first`): a side shorter than half keeps all
    of its text, and two long sides get half each.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length=tokenizer.model_max_length, strategy="longest_first")
    encodings = backend.encode_batch_fast(list(pairs))
    as_array = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
    return as_array, [np.asarray(encoding.type_ids, dtype=np.int32) for encoding in encodings]


def features(
    tokens: Sequence[np.ndarray], types: Sequence[np.ndarray], padding: int, model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    """Padded model inputs (B, T)."""
    ids, mask = pad(tokens, padding)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = pad(types, 0)[0]
    return inputs


class CrossEncoder:
    """Model and tokenizer together, as trained and as served."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, folder: str | Path) -> "CrossEncoder":
        """From a folder that `save` wrote, on this process's device."""
        model = AutoModelForSequenceClassification.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return cls(model.to(device.device()).eval(), tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), config and tokenizer."""
        self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    @torch.inference_mode()
    def one_order(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Logits (N,) float64 of pairs read in the order given."""
        tokens, types = tokenize_pairs(self.tokenizer, pairs)
        lengths = np.fromiter((len(ids) for ids in tokens), dtype=np.int64, count=len(tokens))
        logits = np.zeros(len(pairs))
        with device.autocast():
            for rows in pack(lengths, batch_budget()):
                inputs = features(
                    [tokens[r] for r in rows], [types[r] for r in rows], self.tokenizer.pad_token_id, self.model
                )
                inputs = {key: tensor.to(self.model.device) for key, tensor in inputs.items()}
                logits[rows] = self.model(**inputs).logits[:, 0].double().cpu().numpy()
        return logits

    def logits(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Logits (N,) float64, averaged over both orders, so that (a, b) and (b, a) agree."""
        pairs = list(pairs)
        both = self.one_order(pairs + [(b, a) for a, b in pairs])
        return (both[: len(pairs)] + both[len(pairs) :]) / 2
