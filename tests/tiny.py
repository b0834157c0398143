"""Tiny real models and corpora, built on the spot: small enough for seconds, with nothing left out."""

from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast

TOPICS = {
    "sea": [
        "ship",
        "sail",
        "wave",
        "captain",
        "deck",
        "storm",
        "anchor",
        "harbour",
        "mast",
        "crew",
        "tide",
        "rope",
        "gull",
        "fish",
        "boat",
    ],
    "war": [
        "soldier",
        "cannon",
        "trench",
        "general",
        "march",
        "flag",
        "drum",
        "battle",
        "siege",
        "horse",
        "sword",
        "camp",
        "victory",
        "wound",
        "order",
    ],
    "love": [
        "heart",
        "kiss",
        "letter",
        "garden",
        "moon",
        "dance",
        "rose",
        "tears",
        "promise",
        "waltz",
        "ribbon",
        "sigh",
        "bride",
        "candle",
        "window",
    ],
    "farm": [
        "plough",
        "field",
        "barn",
        "cow",
        "harvest",
        "seed",
        "wheat",
        "mill",
        "fence",
        "orchard",
        "hay",
        "shepherd",
        "wool",
        "soil",
        "spring",
    ],
    "court": [
        "judge",
        "jury",
        "witness",
        "trial",
        "lawyer",
        "verdict",
        "prison",
        "oath",
        "clerk",
        "debt",
        "statute",
        "guilty",
        "appeal",
        "robe",
        "bench",
    ],
    "rail": [
        "engine",
        "steam",
        "track",
        "station",
        "whistle",
        "guard",
        "ticket",
        "tunnel",
        "coal",
        "signal",
        "bridge",
        "carriage",
        "timetable",
        "smoke",
        "porter",
    ],
}
FILLER = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "that",
    "it",
    "was",
    "he",
    "she",
    "his",
    "her",
    "with",
    "for",
    "as",
    "had",
    "but",
    "not",
    "at",
    "on",
    "by",
    "they",
    "said",
    "from",
]


def sentence(draw: np.random.Generator, words: list[str]) -> str:
    """Eight to sixteen words, half of them function words, so that it counts as English."""
    chosen = [draw.choice(words if draw.random() < 0.4 else FILLER) for _ in range(draw.integers(8, 17))]
    return " ".join(chosen).capitalize() + "."


def book(topic: str, name: str, num_sentences: int = 120, seed: int = 0) -> str:
    """A book on a topic, with three words of its own, in paragraphs."""
    draw = np.random.default_rng([seed, *name.encode()])
    words = TOPICS[topic] + [f"{name}on", f"{name}ia", f"{name}ham"] * 3
    sentences = [sentence(draw, words) for _ in range(num_sentences)]
    return "\n\n".join("\n".join(sentences[i : i + 5]) for i in range(0, num_sentences, 5)) + "\n"


def write_books(folder: Path, authors: int = 12, books: int = 3, num_sentences: int = 120) -> Path:
    """A folder of `author/title.txt`."""
    topics = sorted(TOPICS)
    for a in range(authors):
        for b in range(books):
            file = folder / f"author_{a:02d}" / f"title_{b}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(book(topics[(a + b) % len(topics)], f"w{a:02d}{chr(97 + b)}", num_sentences), "utf-8")
    return folder


def tiny_encoder(folder: Path) -> str:
    """A two-layer BERT of width 32 with mean pooling, as a sentence-transformers folder."""
    torch.manual_seed(0)
    text = (
        [" ".join(words) for words in TOPICS.values()]
        + [" ".join(FILLER)]
        + list("abcdefghijklmnopqrstuvwxyz0123456789")
    )
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(text * 3, vocab_size=600, min_frequency=1, show_progress=False)
    raw = folder / "raw"
    raw.mkdir(parents=True)
    trained.save_model(str(raw))
    tokenizer = BertTokenizerFast(vocab=str(raw / "vocab.txt"), do_lower_case=True)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    transformer = Transformer(str(raw), max_seq_length=128)
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu")
    model.save(str(folder / "model"), create_model_card=False)
    return str(folder / "model")
