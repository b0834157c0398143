"""The bi-encoder: a shared encoder with pooling and projection, and a symmetric head over two embeddings.

Saved as a sentence-transformers folder (`SentenceTransformer(path)` loads the encoder) with the head beside it.
Shape letters: N texts or pairs, B rows of a batch, T tokens, D embedding width, F pair features of the views.
"""

import copy
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

from quire import device, encoder, levels
from quire.attention import TokenGate, is_gate
from quire.baselines import Regression, fit_regression
from quire.errors import UserError
from quire.proper_names import masked
from quire.views import PAIRS_PER_BLOCK, Rows, Views

_HEAD_WEIGHTS, _HEAD_CONFIG = "pair_head.safetensors", "pair_head.json"
_SIZES = ("width", "hidden_size", "num_features")
# A step of Adam moves a parameter by about the learning rate: without it, a few hundred steps would leave the cosine's
# weight where the untrained encoder put it, and the temperature of the contrastive loss where it began.
SCALAR_GAIN = 50.0
# A head that takes nearness for a sign against would turn validation round while the contrastive loss trains for it.
LEAST_COSINE_WEIGHT = 0.1
LEAST_PART_WEIGHT = 0.05  # of the views, and of what the encoder says: training that goes on can win either back
MAX_INVERSE_TEMPERATURE = 100.0  # as CLIP bounds it (Radford et al. 2021, section 2.5): temperature >= 0.01


def build_encoder(folder: str, *, pooling: str, max_seq_length: int, typed_marks: bool = True) -> SentenceTransformer:
    """A pretrained encoder with its transformer kept, the given pooling, and a projection that starts as identity.

    The untrained bi-encoder therefore ranks pairs exactly as the pretrained model with that pooling does, of texts with
    typed marks (`encoder.read_typed`), where that is asked for; `attention` starts as the mean.
    """
    transformer = Transformer(folder, max_seq_length=max_seq_length, model_kwargs={"use_safetensors": True})
    encoder.freeze_unused(transformer)
    if typed_marks:
        encoder.read_typed(transformer)
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


def part_weights(both: Regression) -> np.ndarray:
    """How a regression over the views' part of a logit and the rest of it weighs the two: (2,)."""
    return np.maximum(both.weights / both.deviation, LEAST_PART_WEIGHT)


class PairHead(nn.Module):
    """Logit of "same book" from two embeddings and how their classical views compare, the same for (a, b) and (b, a).

    scaled cosine + bias + linear over the views' features + a small network over |u-v|, u*v and the features. The
    network starts at zero; `start` sets the rest to what a logistic regression finds, so that training begins at the
    classical baseline and can only add to it.
    """

    def __init__(self, width: int, hidden_size: int = 128, num_features: int = 0):
        super().__init__()
        self.width, self.hidden_size, self.num_features = width, hidden_size, num_features
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_deviation", torch.ones(num_features))
        # without features there is nothing to train, and workers would wait for a gradient that never comes
        self.feature_weight = nn.Parameter(torch.zeros(num_features), requires_grad=num_features > 0)
        self.hidden = nn.Linear(2 * width + num_features, hidden_size)
        self.out = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.cosine_scale = nn.Parameter(torch.tensor(5.0 / SCALAR_GAIN))
        self.cosine_bias = nn.Parameter(torch.tensor(-2.0 / SCALAR_GAIN))

    @torch.no_grad()
    def start(self, views: Regression, both: Regression) -> None:
        """From a regression over F view features, and one over its logit and the cosine of the embeddings."""
        (of_views, of_cosine), bias = both.weights / both.deviation, both.bias
        of_cosine = max(of_cosine, LEAST_COSINE_WEIGHT)
        self.feature_mean.copy_(torch.from_numpy(views.mean))
        self.feature_deviation.copy_(torch.from_numpy(views.deviation))
        self.feature_weight.copy_(torch.from_numpy(of_views * views.weights))
        bias += of_views * (views.bias - both.mean[0]) - of_cosine * both.mean[1]
        self.cosine_scale.fill_(of_cosine / SCALAR_GAIN)
        self.cosine_bias.fill_(bias / SCALAR_GAIN)

    def of_views(self, features: torch.Tensor) -> torch.Tensor:
        """What the views alone add to the logit, (..., F) to (...)."""
        return self._standard(features) @ self.feature_weight

    def _standard(self, features: torch.Tensor) -> torch.Tensor:
        return ((features - self.feature_mean) / self.feature_deviation).clamp(-5, 5)

    @torch.no_grad()
    def weigh(self, of_views: float, of_rest: float, bias: float) -> None:
        """Multiply what the views say and all the rest, and add a bias to the logit."""
        self.feature_weight.mul_(of_views)
        for part in (self.cosine_scale, self.cosine_bias, self.out.weight, self.out.bias):
            part.mul_(of_rest)
        self.cosine_bias.add_(bias / SCALAR_GAIN)

    def forward(self, u: torch.Tensor, v: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(..., D), (..., D) and features (..., F) to logits (...)."""
        features = self._standard(features)
        unit = self.width**0.5  # components of a normalised vector are of size 1/sqrt(D)
        inputs = torch.cat([unit * (u - v).abs(), self.width * u * v, features], dim=-1)
        cosine = (u * v).sum(-1)
        linear = SCALAR_GAIN * (self.cosine_scale * cosine + self.cosine_bias) + features @ self.feature_weight
        return linear + self.out(nn.functional.gelu(self.hidden(inputs)))[..., 0]


class BiEncoder:
    """Encoder, head and the views that the head sees, as trained and as served."""

    def __init__(self, model: SentenceTransformer, head: PairHead, views: Views | None = None):
        self.model, self.head, self.views = model, head, views or Views()

    @classmethod
    def load(cls, folder: str | Path) -> "BiEncoder":
        """From a folder that `save` wrote. Raises when a weight is missing: transformers would draw it at random."""
        folder = Path(folder)
        if not (folder / _HEAD_CONFIG).is_file():
            raise UserError(
                f"{folder}: no {_HEAD_CONFIG}, so this is no bi-encoder; name one that trainers.bi_encoder made"
            )
        sizes = json.loads((folder / _HEAD_CONFIG).read_text("utf-8"))
        if set(sizes) != set(_SIZES):
            raise UserError(f"{folder / _HEAD_CONFIG}: expected the keys {', '.join(_SIZES)}; train the model again")
        head, views = PairHead(**sizes), Views.load(folder)
        if len(views.feature_names) != head.num_features:
            given = len(views.feature_names)
            raise UserError(f"{folder}: the views give {given} features, the head reads {head.num_features}")
        head.load_state_dict(load_file(folder / _HEAD_WEIGHTS), strict=True)
        model = encoder.load_encoder(str(folder))
        encoder.check_whole(model, folder)
        return cls(model, head.to(device.device()).eval(), views)

    @classmethod
    def go_on(cls, folder: str | Path, max_seq_length: int) -> "BiEncoder":
        """From a folder that `save` wrote, to be trained further, with texts of `max_seq_length` tokens.

        Raises UserError when the model has fewer positions.
        """
        found = cls.load(folder)
        model = encoder.load_encoder(str(folder), max_seq_length)
        encoder.freeze_unused(model[0])
        modules = [TokenGate.from_dense(module) if is_gate(module) else module for module in model]
        further = SentenceTransformer(modules=modules, device=str(model.device))
        further.mask_names = encoder.masks_names(model)
        return cls(further, found.head, found.views)

    def save(self, folder: str | Path) -> None:
        """Write the sentence-transformers folder, of its own modules alone, the head and its views."""
        folder = Path(folder)
        modules = [module.as_dense() if isinstance(module, TokenGate) else module for module in self.model]
        saved = SentenceTransformer(modules=modules, device=str(self.model.device))
        saved.save(str(folder), create_model_card=False, safe_serialization=True)
        encoder.save_reading(self.model, folder)
        state = {name: tensor.contiguous().cpu() for name, tensor in self.head.state_dict().items()}
        save_file(state, folder / _HEAD_WEIGHTS)
        sizes = {name: getattr(self.head, name) for name in _SIZES}
        (folder / _HEAD_CONFIG).write_text(json.dumps(sizes, sort_keys=True), "utf-8")
        self.views.save(folder)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Normalised embeddings (N, D) float32."""
        return encoder.encode(self.model, texts)

    def rows(self, texts: Sequence[str]) -> Rows:
        """N texts as the views that the head compares."""
        return self.views.rows(self._read(texts))

    def _read(self, texts: Sequence[str]) -> Sequence[str]:
        """As the views read them; the encoder masks names by itself."""
        return [masked(text) for text in texts] if encoder.masks_names(self.model) else texts

    @torch.inference_mode()
    def pair_logits(self, embeddings_a: np.ndarray, embeddings_b: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Logits (...) float64 of pairs given by embeddings (..., D) and features (..., F); symmetric."""
        where = self.head.out.weight.device
        arrays = (
            torch.from_numpy(np.require(x, requirements="CW")).to(where) for x in (embeddings_a, embeddings_b, features)
        )
        return self.head(*arrays).double().cpu().numpy()

    def all_pair_logits(self, embeddings: tuple[np.ndarray, np.ndarray], rows: tuple[Rows, Rows]) -> np.ndarray:
        """Logits (m, n) float64 of every text of one list with every one of another, by embeddings and views."""
        u, v = embeddings[0][:, None], embeddings[1][None]
        return self.pair_logits(*np.broadcast_arrays(u, v), self.views.all_pairs(*rows))

    def evidence(self, embeddings: tuple[np.ndarray, np.ndarray], rows: tuple[Rows, Rows]) -> tuple[np.ndarray, float]:
        """Logits (k, k) of all passages of one text with all of another, given as in `all_pair_logits`, and what they
        say together (`levels.evidence`)."""
        between, k = self.all_pair_logits(embeddings, rows), len(rows[0])
        own = [self.all_pair_logits((one, one), (row, row)) for one, row in zip(embeddings, rows, strict=True) if k > 1]
        return between, levels.evidence(between, own)

    def score(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
        """Logits (N,) of text pairs; each distinct text is read once."""
        texts = list(dict.fromkeys([*texts_a, *texts_b]))
        row = {text: index for index, text in enumerate(texts)}
        embeddings, rows = self.encode(texts), self.rows(texts)
        a, b = (np.asarray([row[text] for text in side], np.int64) for side in (texts_a, texts_b))
        logits = np.zeros(len(a))
        for start in range(0, len(a), PAIRS_PER_BLOCK):
            block = slice(start, start + PAIRS_PER_BLOCK)
            features = self.views.pairs(rows[a[block]], rows[b[block]])
            logits[block] = self.pair_logits(embeddings[a[block]], embeddings[b[block]], features)
        return logits

    def weighed(
        self, texts_a: Sequence[str], texts_b: Sequence[str], labels: np.ndarray, negative_types: Sequence[str]
    ) -> "BiEncoder":
        """The same with a head that weighs the views against what the encoder says by N pairs of works that it was not
        trained on, and has the mean logit of their negatives at `levels.STRANGERS`.

        An encoder tells the works it was trained on apart far better than any other, the views tell all alike, so a
        head trained beside it trusts it too much: stacking wants predictions on held-out data (Wolpert 1992). Two
        weights and a bias are all that is fitted, for masked texts too. The bias is that of negatives alone, every type
        of them weighing the same: how alike a book is within itself differs more from one to the next than how alike
        strangers are, and one scale then serves models of different authors (LOG, 2026-11-23). Without views the bias
        is all. Raises UserError as `fit_regression`.
        """
        parts, weights = self.parts(texts_a, texts_b), np.ones(2)
        if self.head.num_features:
            weights = part_weights(fit_regression(parts, labels, negative_types))
        logits, kinds = parts @ weights, np.where(np.asarray(labels) == 1, "", np.asarray(negative_types, dtype=str))
        strangers = np.mean([logits[kinds == kind].mean() for kind in sorted({*kinds} - {""})])
        head = copy.deepcopy(self.head)
        head.weigh(*weights.tolist(), bias=float(levels.STRANGERS - strangers))
        return BiEncoder(self.model, head, self.views)

    def parts(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
        """What the views add to the logits of N pairs, and all the rest of them: (N, 2), whose sum is `score`."""
        with torch.inference_mode():
            features = torch.from_numpy(self.views.compare(self._read(texts_a), self._read(texts_b)))
            of_views = self.head.of_views(features.to(self.head.out.weight.device)).double().cpu().numpy()
        return np.stack([of_views, self.score(texts_a, texts_b) - of_views], axis=1)

    def start_head(
        self,
        texts_a: Sequence[str],
        texts_b: Sequence[str],
        labels: np.ndarray,
        negative_types: np.ndarray,
        num_encoded: int,
    ) -> None:
        """Start the head from N training pairs: the views' weights from all of them, and from the same pairs with names
        masked where those have weights of their own; the cosine's, which takes embeddings, from `num_encoded` evenly
        spaced ones. Raises UserError as `fit_regression`."""
        features = self.views.compare(self._read(texts_a), self._read(texts_b))
        if self.views.masked_apart:
            hidden = {text: masked(text) for text in {*texts_a, *texts_b}}
            apart = self.views.compare([hidden[text] for text in texts_a], [hidden[text] for text in texts_b])
            twice = (np.concatenate([part, part]) for part in (labels, negative_types))
            regression = fit_regression(np.concatenate([features, apart]), *twice)
        else:
            regression = fit_regression(features, labels, negative_types)
        few = np.unique(np.linspace(0, len(labels) - 1, num_encoded).astype(int))
        sides = (self.encode([texts[row] for row in few]) for texts in (texts_a, texts_b))
        both = np.stack([regression.logits(features[few]), np.multiply(*sides).sum(1)], axis=1)
        self.head.start(regression, fit_regression(both, labels[few], negative_types[few]))
