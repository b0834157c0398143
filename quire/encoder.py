"""Text to vectors: any sentence-transformers model, tokenised once, sorted by length, packed, in the best precision.

Shape letters: N texts, B rows of a batch, T tokens, D embedding width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from torch import nn

from quire import device
from quire.errors import UserError
from quire.packing import pack, pad


def freeze_unused(transformer: nn.Module) -> None:
    """Take the pooler of BERT's kind out of training: token vectors do not pass through it.

    With several workers, gradients that never come would hold up every step.
    """
    for name, parameter in transformer.named_parameters():
        if ".pooler." in f".{name}":
            parameter.requires_grad_(False)


def check_whole(model: nn.Sequential, folder: Path) -> None:
    """Raise UserError when the transformer's file lacks one of its weights: transformers draws such ones at random."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        missing = sorted(set(model[0].model.state_dict()) - set(file.keys()))
    if missing:
        raise UserError(
            f"{folder}/model.safetensors lacks {len(missing)} weights, such as {missing[0]!r}: save it again"
        )


def load_encoder(folder: str, max_seq_length: int | None = None) -> SentenceTransformer:
    """A sentence-transformers model from a local folder, on this process's device, in evaluation mode."""
    model = SentenceTransformer(folder, device=str(device.device()), local_files_only=True, trust_remote_code=False)
    if max_seq_length is not None:
        model.max_seq_length = max_seq_length
    return model.eval()


def tokenize(model: SentenceTransformer, texts: Sequence[str], max_length: int | None = None) -> list[np.ndarray]:
    """Token ids with special tokens, cut to `max_length` (default: the model's): N arrays of int32."""
    backend = model.tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length=max_length or model.max_seq_length)
    return [np.asarray(encoding.ids, dtype=np.int32) for encoding in backend.encode_batch_fast(list(texts))]


def batch_budget(folder_device: torch.device | None = None) -> int:
    """Padded tokens per batch: small on a CPU, where it must fit the caches, large on a GPU, which must be filled."""
    return 131_072 if (folder_device or device.device()).type == "cuda" else 4_096


@torch.inference_mode()
def encode_tokens(
    model: SentenceTransformer, tokens: Sequence[np.ndarray], max_batch_tokens: int | None = None
) -> np.ndarray:
    """Embeddings (N, D) float32, in the order of `tokens`, normalised if the model normalises."""
    lengths = np.fromiter((len(ids) for ids in tokens), dtype=np.int64, count=len(tokens))
    embeddings = np.zeros((len(tokens), model.get_embedding_dimension()), dtype=np.float32)
    padding = model.tokenizer.pad_token_id or 0
    with device.autocast():
        for rows in pack(lengths, max_batch_tokens or batch_budget()):
            ids, mask = pad([tokens[row] for row in rows], padding)
            features = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            embeddings[rows] = model(features)["sentence_embedding"].float().cpu().numpy()
    return embeddings


def encode(model: SentenceTransformer, texts: Sequence[str], max_batch_tokens: int | None = None) -> np.ndarray:
    """Embeddings (N, D) float32 of texts. Equal texts are encoded once."""
    distinct = list(dict.fromkeys(texts))
    embeddings = encode_tokens(model, tokenize(model, distinct), max_batch_tokens)
    position = {text: row for row, text in enumerate(distinct)}
    return embeddings[[position[text] for text in texts]]
