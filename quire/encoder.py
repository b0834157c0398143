"""Text to vectors: any sentence-transformers model, tokenised once, sorted by length, packed, in the best precision.

Shape letters: N texts, B rows of a batch, T tokens, D embedding width.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from tokenizers import Regex, Tokenizer, normalizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from quire import device, heap
from quire.errors import UserError
from quire.packing import Budget, pack, pad
from quire.proper_names import masked
from quire.reading import TYPED

_TEXTS = "texts.json"  # how the model's texts are read; a folder without it reads them as they are
# torch's fused attention on a CPU takes scores 16 at a time (the floats of an AVX-512 register), what is left of a row
# far slower: in a layer of MiniLM in bf16, 4,096 tokens take 8.0 ms as texts of 252, 11.8 of 253 and 5.2 of 256.
_LANES = 16
_WORTH = 96  # tokens; below, up to 15 more of each text cost the rest of the model what attention gains


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


def read_typed(transformer: Transformer) -> None:
    """Make the model's tokenizer read typeset marks as typed ones, and _italics_ as plain words.

    Which of them stand in a text is the habit of who transcribed a book, not of who wrote it (LOG.md: they alone tell
    books apart with an AUC of .825). It is part of the tokenizer, so every library that loads the folder reads so.
    """
    if reads_typed(transformer):
        return
    backend: Tokenizer = transformer.tokenizer.backend_tokenizer
    own, parts = backend.normalizer, _typed()
    backend.normalizer = normalizers.Sequence([*parts, own] if own else parts)
    # A tokenizer of the model's own class would be built anew from its vocabulary when it is loaded, without all this.
    before = transformer.tokenizer
    kept = ("model_max_length", "padding_side", "truncation_side", "model_input_names")
    transformer.processor = PreTrainedTokenizerFast(
        tokenizer_object=backend, **before.special_tokens_map, **{name: getattr(before, name) for name in kept}
    )


def reads_typed(transformer: Transformer) -> bool:
    """Whether the model's tokenizer reads as `read_typed` makes it: its normalizer is a sequence that begins so."""
    own, parts = transformer.tokenizer.backend_tokenizer.normalizer, _typed()
    if not isinstance(own, normalizers.Sequence):
        return False
    found = json.loads(own.__getstate__())["normalizers"][: len(parts)]
    return found == [json.loads(part.__getstate__()) for part in parts]


def _typed() -> list[normalizers.Normalizer]:
    replaced = [normalizers.Replace(typeset, typed) for typeset, typed in TYPED.items()]
    return [*replaced, normalizers.Replace(Regex("_+"), "")]


def masks_names(model: SentenceTransformer) -> bool:
    """Whether the model was trained on texts with their names masked, and so reads every text that way."""
    return getattr(model, "mask_names", False)


def save_reading(model: SentenceTransformer, folder: Path) -> None:
    """Beside a saved model: how its texts are read."""
    (folder / _TEXTS).write_text(json.dumps({"mask_names": masks_names(model)}), "utf-8")


def _load_reading(model: SentenceTransformer, folder: Path) -> None:
    file = folder / _TEXTS
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {"mask_names": False}
    if found.keys() != {"mask_names"} or not isinstance(found["mask_names"], bool):
        raise UserError(f"{file}: expected the key mask_names, true or false; train the model again")
    model.mask_names = found["mask_names"]


def load_encoder(
    folder: str, max_seq_length: int | None = None, dtype: torch.dtype = torch.float32
) -> SentenceTransformer:
    """A sentence-transformers model from a local folder, on this process's device, in evaluation mode.

    Its transformer's weights are `dtype`; pooling and what follows always have float32. A folder that says so makes one
    that reads texts with their names masked. Raises UserError for a model that does not begin with a transformer, and
    for a `max_seq_length` beyond its positions.
    """
    heap.few_kernels()
    model = SentenceTransformer(folder, device=str(device.device()), local_files_only=True, trust_remote_code=False)
    if not isinstance(model[0], Transformer):
        raise UserError(
            f"model {folder}: begins with {type(model[0]).__name__}; need one that begins with a Transformer"
        )
    _load_reading(model, Path(folder))
    if max_seq_length is not None:
        positions = getattr(model[0].model.config, "max_position_embeddings", max_seq_length)
        if max_seq_length > positions:
            raise UserError(f"max_seq_length = {max_seq_length}: the model at {folder} has {positions} positions")
        model.max_seq_length = max_seq_length
    if dtype != torch.float32:
        model[0].to(dtype)
        model[0].register_forward_hook(_widened)
    return model.eval()


def _widened(module: nn.Module, inputs: Any, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return features | {"token_embeddings": features["token_embeddings"].float()}


def document_prompt(model: SentenceTransformer, prompt: str | None, prompt_name: str | None) -> str:
    """What is written before each document: `prompt`, or the model's own of that name, or its own for documents.

    As `SentenceTransformer.encode_document` chooses. Raises UserError for a name that the model does not have.
    """
    if prompt is not None:
        return prompt
    if prompt_name is not None and prompt_name not in model.prompts:
        raise UserError(f"prompt_name = {prompt_name!r}: the model has {', '.join(model.prompts) or 'no prompts'}")
    own = (name for name in ("document", "passage", "corpus", model.default_prompt_name) if name in model.prompts)
    return model.prompts.get(prompt_name or next(own, ""), "")


def query_prompt(model: SentenceTransformer, prompt: str | None, prompt_name: str | None) -> str:
    """What is written before a query of documents that were embedded with these settings: the same where they name a
    prompt, else the model's own for queries."""
    own = "query" if "query" in model.prompts else None
    return document_prompt(model, prompt, prompt_name or own)


def tokenize(
    model: SentenceTransformer, texts: Sequence[str], max_length: int | None = None, prompt: str = ""
) -> list[np.ndarray]:
    """Token ids of prompt and text with special tokens, cut to `max_length` (default: the model's).

    N arrays of int32. Every text that a model of ours reads passes here, so here its names are masked, if they are.
    """
    return tokenize_counting(model, texts, max_length, prompt)[0]


def tokenize_counting(
    model: SentenceTransformer, texts: Sequence[str], max_length: int | None = None, prompt: str = ""
) -> tuple[list[np.ndarray], int]:
    """What `tokenize` gives, and how many of the texts were cut."""
    backend = model.tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length=max_length or model.max_seq_length)
    whole = [prompt + (masked(text) if masks_names(model) else text) for text in texts]
    if getattr(model[0], "do_lower_case", False):  # what some older models ask for, beside their tokenizer
        whole = [text.lower() for text in whole]
    found = backend.encode_batch_fast(whole)
    ids = [np.asarray(encoding.ids, dtype=np.int32) for encoding in found]
    return ids, sum(bool(encoding.overflowing) for encoding in found)


def takes_ids(model: SentenceTransformer, prompt: str) -> bool:
    """Whether a text's own token ids stand unchanged behind a prompt: there is none, or a blank that the tokenizer
    drops parts the two."""
    words = json.loads(model.tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    if getattr(model[0], "do_lower_case", False) or masks_names(model):
        return False
    return not prompt or (prompt[-1].isspace() and words.get("type") in ("BertPreTokenizer", "WhitespaceSplit"))


def framed(model: SentenceTransformer, token_ids: Sequence[np.ndarray], prompt: str) -> tuple[list[np.ndarray], int]:
    """What `tokenize_counting` gives for texts whose own ids are known, where `takes_ids` holds."""
    room = model.max_seq_length
    _, after = _around(model)
    before = tokenize(model, [""], prompt=prompt)[0]
    before = before[: len(before) - len(after)]
    kept = max(0, room - len(before) - len(after))
    whole = [np.concatenate([before, ids[:kept], after]).astype(np.int32) for ids in token_ids]
    return whole, sum(len(ids) > kept for ids in token_ids)


def _prompt_length(model: SentenceTransformer, prompt: str) -> int:
    """Tokens before the text: the prompt's and the special ones that begin a sequence."""
    return len(tokenize(model, [""], prompt=prompt)[0]) - len(_around(model)[1])


def _around(model: SentenceTransformer) -> tuple[np.ndarray, np.ndarray]:
    """The special tokens before and after a text."""
    backend = model.tokenizer.backend_tokenizer
    backend.no_padding()
    found = backend.encode("a")
    own = np.flatnonzero(np.asarray(found.special_tokens_mask) == 0)
    ids = np.asarray(found.ids, np.int32)
    return ids[: own[0]], ids[own[-1] + 1 :]


def batch_budget(folder_device: torch.device | None = None) -> Budget:
    """Padded tokens per batch: few on a CPU, where they must fit the caches, many on a GPU, which must be filled."""
    return Budget(131_072 if (folder_device or device.device()).type == "cuda" else 4_096)


def _padded(lengths: np.ndarray, model: SentenceTransformer, autocast: torch.dtype | None) -> np.ndarray:
    """(N,) int64, to how many tokens texts of these lengths are padded at least.

    Never beyond what the model reads. In float32 a text is left as it is: it is what others are compared to.
    """
    weights = next(model.parameters()).dtype
    computed = weights if weights != torch.float32 else autocast or device.precision()
    if model.device.type != "cpu" or computed == torch.float32:
        return lengths
    whole = np.minimum(-(-lengths // _LANES) * _LANES, model.max_seq_length or 0)
    return np.where(lengths > _WORTH, np.maximum(lengths, whole), lengths)


@torch.inference_mode()
def encode_tokens(
    model: SentenceTransformer,
    tokens: Sequence[np.ndarray],
    budget: Budget | None = None,
    *,
    autocast: torch.dtype | None = None,
    prompt: str = "",
) -> np.ndarray:
    """Embeddings (N, D) float32, in the order of `tokens`, normalised if the model normalises.

    A batch that the memory does not hold is split and the budget lowered. A batch is prepared while the one before is
    computed. `autocast` is to `device.precision()` by default. `prompt` is what the tokens begin with, and some models
    do not pool. Raises UserError when the memory does not hold a single row.
    """
    lengths = np.fromiter((len(ids) for ids in tokens), dtype=np.int64, count=len(tokens))
    lengths = _padded(lengths, model, autocast)
    embeddings = np.zeros((len(tokens), model.get_embedding_dimension()), dtype=np.float32)
    budget = budget or batch_budget()
    padding = model.tokenizer.pad_token_id or 0
    extra = {"prompt_length": _prompt_length(model, prompt)} if prompt else {}

    def start(rows: np.ndarray) -> list[tuple[np.ndarray, torch.Tensor]]:
        ids, mask = pad([tokens[row] for row in rows], padding, int(lengths[rows].max()))
        try:
            features = {"input_ids": _moved(ids, model.device), "attention_mask": _moved(mask, model.device)}
            return [(rows, model(features | extra)["sentence_embedding"].float())]
        except (RuntimeError, MemoryError) as error:
            if not _is_short_of_memory(error):
                raise
            if len(rows) == 1:
                longest = ids.shape[1]
                raise UserError(f"memory does not hold one text of {longest} tokens; lower max_seq_length") from error
            budget.lower(ids.numel())
            torch.cuda.empty_cache()
        return [part for fewer in pack(lengths[rows], budget) for part in start(rows[fewer])]

    waiting: list[tuple[np.ndarray, torch.Tensor]] = []
    with device.autocast(autocast):
        for rows in pack(lengths, budget):
            begun = start(rows)
            for done, vectors in waiting:
                embeddings[done] = vectors.cpu().numpy()
            waiting = begun
    for done, vectors in waiting:
        embeddings[done] = vectors.cpu().numpy()
    return embeddings


def _is_short_of_memory(error: Exception) -> bool:
    """torch has an exception of its own for a GPU alone; its CPU allocator (c10/core/impl/alloc_cpu.cpp) says it."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _moved(tensor: torch.Tensor, target: torch.device) -> torch.Tensor:
    """On the device; from pinned memory a copy runs beside what the GPU computes."""
    return tensor.pin_memory().to(target, non_blocking=True) if target.type == "cuda" else tensor


def encode(
    model: SentenceTransformer, texts: Sequence[str], budget: Budget | None = None, prompt: str = ""
) -> np.ndarray:
    """Embeddings (N, D) float32 of texts behind a prompt. Equal texts are encoded once."""
    distinct = list(dict.fromkeys(texts))
    embeddings = encode_tokens(model, tokenize(model, distinct, prompt=prompt), budget, prompt=prompt)
    position = {text: row for row, text in enumerate(distinct)}
    return embeddings[[position[text] for text in texts]]
