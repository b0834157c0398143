"""Attention pooling that `SentenceTransformer(path)` loads with nothing of Quire installed.

sentence-transformers has no attention pooling, and since 6.0 it loads a class from outside its own package only with
`trust_remote_code=True`. What it does have is enough: a `Dense` on token vectors with a gated linear unit, the plain
mean, a projection without bias, and `Normalize`. Shape letters: B texts, T tokens, D width.
"""

import torch
from sentence_transformers.base.modules import Dense
from torch import nn


class TokenGate(nn.Module):
    """Weighs each token vector h by sigmoid(w.h + b); with mean, projection without bias and norm it is attention.

    The mean of a_i h_i over T tokens is sum(a) / T times the mean weighted by a_i / sum(a), and a factor is lost when
    the vector is normalised. So this is attention by one learned query w, its weights sum to one, and they are
    proportional to sigmoids instead of exponentials (Ramapuram et al. 2024, arXiv:2409.04431): bounded, so that no one
    token takes all. It starts at w = 0, where all tokens weigh the same, as the plain mean.
    """

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, 1)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`token_embeddings` (B, T, D) to the weighed ones."""
        tokens = features["token_embeddings"]
        return features | {"token_embeddings": tokens * self.query(tokens).sigmoid()}

    def as_dense(self) -> Dense:
        """The same as a module of sentence-transformers: (h, w.h + b) through a gated linear unit, h * sigmoid(...).

        It multiplies by an identity and D times by w, about as much work as a sixth of a transformer's layer.
        """
        width = self.query.in_features
        weight, bias = self.query.weight.detach(), self.query.bias.detach()
        return Dense(
            width,
            2 * width,
            activation_function=nn.GLU(),
            init_weight=torch.cat([torch.eye(width, device=weight.device), weight.expand(width, width)]),
            init_bias=torch.cat([bias.new_zeros(width), bias.expand(width)]),
            module_input_name="token_embeddings",
        )

    @classmethod
    def from_dense(cls, dense: Dense) -> "TokenGate":
        """Back from `as_dense`, to be trained on."""
        gate = cls(dense.in_features)
        with torch.no_grad():
            gate.query.weight.copy_(dense.linear.weight[-1:])
            gate.query.bias.copy_(dense.linear.bias[-1:])
        return gate.to(dense.linear.weight.device)


def is_gate(module: nn.Module) -> bool:
    """Whether a module of a loaded model is what `as_dense` made."""
    return isinstance(module, Dense) and isinstance(module.activation_function, nn.GLU)
