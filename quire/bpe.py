"""Tokenizers: any of the hub or a folder, or a byte-level BPE trained on the corpus.

What comes from transformers is imported where it is used: it brings torch, seconds that workers need not wait for.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from quire.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END = "<|endoftext|>"


def train(texts: Iterator[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE (Radford et al. 2019) of `vocab_size` ids: 256 bytes, the end of text, and merges.

    Every text can be written with it and read back. Raises UserError when the texts give fewer ids.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    found = tokenizer.get_vocab_size()
    if found < vocab_size:
        raise UserError(
            f"tokenizer.vocab_size = {vocab_size}: the corpus gives {found} ids; ask for that many or fewer"
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, unk_token=END)


def load(name: str) -> "PreTrainedTokenizerBase":
    """A fast tokenizer by hub name or folder. Raises UserError when it cannot be had, or is not a fast one."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer {name!r}: neither a folder nor a tokenizer on the hub: {error}") from error
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {name!r} has no fast version (tokenizer.json)")
    return tokenizer


def spread(ids: Iterable[str | None], count: int) -> list[int]:
    """At most `count` places, chosen by the hashes of the ids: the same documents wherever they stand.

    None holds the place of a document that is not to be chosen. Memory holds `count` of them, however many there are.
    """
    chosen = ((place, document) for place, document in enumerate(ids) if document is not None)
    marked = ((hashlib.sha256(document.encode()).digest(), place) for place, document in chosen)
    return sorted(place for _, place in heapq.nsmallest(count, marked))


def save(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write what `AutoTokenizer.from_pretrained(folder)` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
