"""The bi-encoder: a shared encoder with pooling and projection, and a symmetric head over two embeddings.

Saved as a sentence-transformers folder (`SentenceTransformer(path)` loads the encoder) with the head beside it.
Shape letters: N texts or pairs, B rows of a batch, T tokens, D embedding width, S style features.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from quire import device, encoder, style
from quire.attention import TokenGate, is_gate

_HEAD_WEIGHTS, _HEAD_CONFIG = "pair_head.safetensors", "pair_head.json"
MAX_INVERSE_TEMPERATURE = 100.0  # as CLIP bounds it (Radford et al. 2021, section 2.5): temperature >= 0.01


def build_encoder(folder: str, *, pooling: str, max_seq_length: int) -> SentenceTransformer:
    """A pretrained encoder with its transformer kept, the given pooling, and a projection that starts as identity.

    The untrained bi-encoder therefore ranks pairs exactly as the pretrained model with that pooling does; `attention`
    starts as the mean.
    """
    transformer = Transformer(folder, max_seq_length=max_seq_length, model_kwargs={"use_safetensors": True})
    encoder.freeze_unused(transformer)
    width = transformer.get_embedding_dimension()
    attention = pooling == "attention"
    projection = Dense(
        width,
        width,
        bias=not attention,  # it would make the length of what `TokenGate` leaves count
        activation_function=nn.Identity(),
        init_weight=torch.eye(width),
        init_bias=torch.zeros(width),
    )
    gate = [TokenGate(width)] if attention else []
    pool = Pooling(width, pooling_mode="mean" if attention else pooling)
    return SentenceTransformer(modules=[transformer, *gate, pool, projection, Normalize()], device="cpu")


def pooling_of(model: SentenceTransformer) -> str:
    """The pooling that `build_encoder` was given."""
    if any(isinstance(module, TokenGate) or is_gate(module) for module in model):
        return "attention"
    return next(module.pooling_mode for module in model if isinstance(module, Pooling))


class PairHead(nn.Module):
    """Logit of "same book" from two embeddings and their style features, the same for (a, b) and (b, a).

    Input: |u-v|, u*v, |s-t|, s*t with the style features s, t standardised by the training set's mean and deviation.
    A scaled cosine is added, so that the head starts from the encoder's own ranking.
    """

    def __init__(self, width: int, hidden_size: int = 128, num_style: int = len(style.NAMES)):
        super().__init__()
        self.width, self.hidden_size, self.num_style = width, hidden_size, num_style
        self.register_buffer("style_mean", torch.zeros(num_style))
        self.register_buffer("style_std", torch.ones(num_style))
        self.hidden = nn.Linear(2 * width + 2 * num_style, hidden_size)
        self.out = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.cosine_scale = nn.Parameter(torch.tensor(5.0))
        self.cosine_bias = nn.Parameter(torch.tensor(-2.0))

    def fit_style(self, features: np.ndarray) -> None:
        """Set mean and deviation from (N, S) style features of the training split."""
        self.style_mean.copy_(torch.from_numpy(features.mean(0)))
        self.style_std.copy_(torch.from_numpy(features.std(0).clip(min=1e-6)))

    def forward(self, u: torch.Tensor, v: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """(..., D), (..., D), (..., S), (..., S) to logits (...)."""
        s, t = (((x - self.style_mean) / self.style_std).clamp(-5, 5) for x in (s, t))
        unit = self.width**0.5  # components of a normalised vector are of size 1/sqrt(D)
        inputs = torch.cat([unit * (u - v).abs(), self.width * u * v, (s - t).abs(), s * t], dim=-1)
        cosine = (u * v).sum(-1)
        return self.cosine_scale * cosine + self.cosine_bias + self.out(nn.functional.gelu(self.hidden(inputs)))[..., 0]


class BiEncoder:
    """Encoder and head together, as trained and as served."""

    def __init__(self, model: SentenceTransformer, head: PairHead):
        self.model, self.head = model, head

    @classmethod
    def load(cls, folder: str | Path) -> "BiEncoder":
        """From a folder that `save` wrote. Raises when a weight is missing: transformers would draw it at random."""
        folder = Path(folder)
        head = PairHead(**json.loads((folder / _HEAD_CONFIG).read_text("utf-8")))
        head.load_state_dict(load_file(folder / _HEAD_WEIGHTS), strict=True)
        model = encoder.load_encoder(str(folder))
        encoder.check_whole(model, folder)
        return cls(model, head.to(device.device()).eval())

    @classmethod
    def go_on(cls, folder: str | Path, max_seq_length: int) -> "BiEncoder":
        """From a folder that `save` wrote, to be trained further, with texts of `max_seq_length` tokens.

        Raises UserError when the model has fewer positions.
        """
        found = cls.load(folder)
        model = encoder.load_encoder(str(folder), max_seq_length)
        encoder.freeze_unused(model[0])
        modules = [TokenGate.from_dense(module) if is_gate(module) else module for module in model]
        return cls(SentenceTransformer(modules=modules, device=str(model.device)), found.head)

    def save(self, folder: str | Path) -> None:
        """Write the sentence-transformers folder, of its own modules alone, and the head."""
        folder = Path(folder)
        modules = [module.as_dense() if isinstance(module, TokenGate) else module for module in self.model]
        saved = SentenceTransformer(modules=modules, device=str(self.model.device))
        saved.save(str(folder), create_model_card=False, safe_serialization=True)
        state = {name: tensor.contiguous().cpu() for name, tensor in self.head.state_dict().items()}
        save_file(state, folder / _HEAD_WEIGHTS)
        sizes = {"width": self.head.width, "hidden_size": self.head.hidden_size, "num_style": self.head.num_style}
        (folder / _HEAD_CONFIG).write_text(json.dumps(sizes, sort_keys=True), "utf-8")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Normalised embeddings (N, D) float32."""
        return encoder.encode(self.model, texts)

    @torch.inference_mode()
    def pair_logits(
        self, embeddings_a: np.ndarray, embeddings_b: np.ndarray, style_a: np.ndarray, style_b: np.ndarray
    ) -> np.ndarray:
        """Logits (N,) float64 of pairs given by embeddings (N, D) and style features (N, S); symmetric."""
        where = self.head.out.weight.device
        arrays = (
            torch.from_numpy(np.ascontiguousarray(x)).to(where) for x in (embeddings_a, embeddings_b, style_a, style_b)
        )
        return self.head(*arrays).double().cpu().numpy()

    def score(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
        """Logits (N,) of text pairs; each distinct text is encoded once."""
        texts = list(dict.fromkeys([*texts_a, *texts_b]))
        row = {text: index for index, text in enumerate(texts)}
        embeddings, features = self.encode(texts), style.style_features(texts)
        a, b = [row[text] for text in texts_a], [row[text] for text in texts_b]
        return self.pair_logits(embeddings[a], embeddings[b], features[a], features[b])
