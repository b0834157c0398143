"""Published token stores of words that mean nothing."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from quire import artifact
from quire.tokens import write_store


def token_store(root: str, vocab_size: int, name: str = "tiny") -> artifact.Artifact:
    """A published token store: four categories, each with words of its own, in documents of 60 tokens."""
    draw = np.random.default_rng(0)
    quarter = vocab_size // 4
    documents = [
        (f"{category}-{split}-{i}", category, [category], split, quarter * c + draw.integers(0, quarter // 2, 60))
        for split, count in (("train", 12), ("validation", 4), ("test", 4))
        for c, category in enumerate(("farm", "love", "sea", "war"))
        for i in range(count)
    ]
    return publish_store(root, name, documents, vocab_size)


def publish_store(root: str, name: str, documents: Iterable[tuple[Any, ...]], vocab_size: int) -> artifact.Artifact:
    """The store of documents as `write_store` takes them, with a tokenizer of the words w0, w1, ..."""
    draft = artifact.begin(root, "tokens", name, recipe={"made": "by a test"}, inputs={})
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    with draft.storage.local_folder(draft.folder) as folder:
        write_store(folder, documents, vocab_size)
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / "tokenizer")
    return draft.publish()
