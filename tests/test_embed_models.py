"""Models of other makes than the tiny BERT of the other tests: what is stored is what the users' library would give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from test_embed_checks import serial  # noqa: F401
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    ModernBertConfig,
    NomicBertConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    XLMRobertaConfig,
)

from pipelines import embed, token_chunks
from quire import config, schema

TEXTS = [tiny.book(topic, name, 12) for topic, name in (("sea", "ab"), ("court", "Zoë"), ("farm", "ef"))]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class Make(NamedTuple):
    """A tokenizer, a config, what follows the transformer, and the model's own prompts."""

    tokenizer: Callable[[], Tokenizer]
    config: type
    more: dict
    tail: tuple
    prompts: dict[str, str]


def byte_level() -> Tokenizer:
    """As Qwen's: bytes, case kept, an end token behind each text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special)
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    return made


def pieces() -> Tokenizer:
    """As XLM-R's: SentencePiece's unigrams, a blank being part of the word behind it."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC()])
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>"))
    ends = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return made


def dense() -> Dense:
    torch.manual_seed(2)
    return Dense(32, 16, activation_function=torch.nn.Tanh())


ASKS = {"query": "query: ", "document": "passage: "}
MAKES = {
    "CLS pooling, not normalised": Make(pieces, XLMRobertaConfig, {}, (Pooling(32, "cls"),), {}),
    "the model's own prompt before SentencePiece": Make(
        pieces, XLMRobertaConfig, {}, (Pooling(32, "mean"), Normalize()), ASKS
    ),
    "a prompt that is not pooled": Make(
        pieces, XLMRobertaConfig, {}, (Pooling(32, "mean", include_prompt=False), Normalize()), ASKS
    ),
    "last token of a causal model, bytes": Make(
        byte_level, Qwen2Config, {"num_key_value_heads": 1}, (Pooling(32, "lasttoken"), Normalize()), {}
    ),
    "a dense layer behind the pooling": Make(byte_level, ModernBertConfig, {}, (Pooling(32, "mean"), dense()), {}),
    "Nomic, with its task prefix": Make(
        pieces, NomicBertConfig, {}, (Pooling(32, "mean"), Normalize()), {"document": "search_document: "}
    ),
}  # fmt: skip


def build(make: Make, folder: Path) -> str:
    torch.manual_seed(0)
    tokenizer = make.tokenizer()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, sep_token="</s>", **names)
    ids = {f"{key}_token_id": made.convert_tokens_to_ids(f"<{name}>") for key, name in (("pad", "pad"), ("bos", "s"))}
    ids["eos_token_id"] = made.convert_tokens_to_ids("</s>")
    shape = {"vocab_size": len(made), "max_position_embeddings": 140, **SIZES, **ids, **make.more}
    AutoModel.from_config(make.config(**shape)).save_pretrained(folder / "raw")
    made.save_pretrained(folder / "raw")
    transformer = Transformer(str(folder / "raw"), max_seq_length=128)
    model = SentenceTransformer(modules=[transformer, *make.tail], device="cpu", prompts=make.prompts)
    model.save(str(folder / "model"), create_model_card=False)
    return str(folder / "model")


@pytest.mark.parametrize("name", MAKES)
def test_embeddings_are_those_of_the_users_library_whatever_the_model(name: str, tmp_path: Path, serial: None) -> None:  # noqa: F811
    model, make = build(MAKES[name], tmp_path), MAKES[name]
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    where = [f"model={model}", f"runtime.root={tmp_path}"]
    sizes = ["max_tokens=80", "overlap=8"]
    given = ["name=c", f"source.folder={tmp_path / 'source'}", *where, *sizes]
    chunks = token_chunks.run(config.load(token_chunks.CONFIG, None, given))
    made = embed.run(config.load(embed.CONFIG, None, ["name=e", "chunks=c", *where]))
    rows, table = chunks.read(), made.read()
    theirs = SentenceTransformer(model, device="cpu")
    expected = theirs.encode_document(rows["text"].to_pylist(), batch_size=4)
    found, whole = schema.matrix(table["embedding"]), np.asarray(rows["index"]) == 0  # later ones may begin in a word
    assert found.shape == expected.shape and whole.sum() == 3 < rows.num_rows
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[whole], expected[whole], atol=1e-4 * scale)
    lengths = np.linalg.norm(found, axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == any(isinstance(module, Normalize) for module in make.tail)
    own = next(iter(prompt for key, prompt in make.prompts.items() if key != "query"), "")
    assert made.manifest["facts"]["prompt"] == own
    assert made.manifest["facts"]["cosine_to_float32"]["min"] > 0.999
