"""Decoder language models (GPT-NeoX) by their sizes: built from random weights or a checkpoint, counted, saved."""

from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
)

from quire import hub
from quire.config import Config
from quire.errors import UserError

# EleutherAI's Pythia-70M (Biderman et al. 2023, arXiv:2304.01373), and one that two CPU cores train in a minute.
PRESETS = {
    "pythia-70m": {"layers": 6, "width": 512, "heads": 8, "mlp_width": 2048, "tied": False, "max_positions": 2048},
    "micro": {"layers": 2, "width": 128, "heads": 4, "mlp_width": 512, "tied": True, "max_positions": 512},
}
_VOCAB_MULTIPLE = 128  # as Pythia's own: 50,277 becomes 50,304, and the output layer divides evenly


class LmModel(Config):
    """A preset, any of its sizes changed; or a checkpoint to start from, which brings its own sizes."""

    preset: Literal["pythia-70m", "micro"] = "micro"
    layers: int | None = Field(default=None, gt=0)
    width: int | None = Field(default=None, gt=0)
    heads: int | None = Field(default=None, gt=0)
    mlp_width: int | None = Field(default=None, gt=0)
    tied: bool | None = Field(default=None, description="input and output embeddings are one matrix")
    max_positions: int | None = Field(default=None, gt=0)
    rotary_share: float = Field(default=0.25, gt=0, le=1, description="of each head's width, that is rotated")
    vocab_size: int | None = Field(default=None, gt=0, description="default: the store's, rounded up to 128")
    weights: str | None = Field(
        default=None, description="a causal model to start from, by folder or hub name, not random weights"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default]
        ignored = [key for key in given if key != "weights"]
        if self.weights is not None and ignored:
            raise ValueError(f"weights bring their own sizes: leave out {', '.join(ignored)}")
        return self

    def size(self, name: str) -> int:
        """`layers`, `width`, `heads`, `mlp_width`, `tied` or `max_positions`: what is set, else the preset's."""
        value = getattr(self, name)
        return PRESETS[self.preset][name] if value is None else value


def model_config(settings: LmModel, vocab_size: int) -> GPTNeoXConfig:
    """The model's shape for a store of `vocab_size` ids. Raises UserError when the sizes contradict each other."""
    width, heads = settings.size("width"), settings.size("heads")
    if width % heads or int(width // heads * settings.rotary_share) % 2:
        raise UserError(
            f"model.width = {width}, model.heads = {heads}: the width must divide by the heads, and "
            f"model.rotary_share = {settings.rotary_share} of a head's width must be an even number"
        )
    model_vocab = settings.vocab_size or -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    _check_vocabulary(model_vocab, vocab_size, "model.vocab_size")
    return GPTNeoXConfig(
        vocab_size=model_vocab,
        hidden_size=width,
        num_hidden_layers=settings.size("layers"),
        num_attention_heads=heads,
        intermediate_size=settings.size("mlp_width"),
        max_position_embeddings=settings.size("max_positions"),
        tie_word_embeddings=settings.size("tied"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": settings.rotary_share,
        },
        use_parallel_residual=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def build_lm(settings: LmModel, vocab_size: int, seed: int) -> PreTrainedModel:
    """The model with float32 weights: random ones by `seed`, or those of `settings.weights`.

    Raises UserError when the store's `vocab_size` is more than the model's.
    """
    if settings.weights is None:
        return random_lm(model_config(settings, vocab_size), seed)
    folder = hub.find_model(settings.weights)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    _check_vocabulary(model.config.vocab_size, vocab_size, f"model.weights = {settings.weights!r}: its vocab_size")
    return _in_float32(model)


def random_lm(shape: GPTNeoXConfig, seed: int) -> GPTNeoXForCausalLM:
    """Random float32 weights, whatever type the config names; the global random state is left as it was.

    Pythia's config says float16. Weights of that type turn AdamW's eps of 1e-8 into 0, and every embedding row
    without a gradient into 0/0 at the first step.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _in_float32(GPTNeoXForCausalLM(shape))


def _in_float32(model: PreTrainedModel) -> PreTrainedModel:
    model = model.float()
    model.config.dtype = torch.float32
    model.config.use_cache = False  # training and whole windows: nothing is generated
    wrong = {name: p.dtype for name, p in model.named_parameters() if p.dtype != torch.float32}
    assert not wrong, wrong
    return model


def check_fits(settings: LmModel, sequence_length: int, vocab_size: int) -> None:
    """Raise UserError when windows or ids do not fit the model, before anything is built."""
    if settings.weights is None:
        shape = model_config(settings, vocab_size)
    else:
        shape = AutoConfig.from_pretrained(hub.find_model(settings.weights), local_files_only=True)
        _check_vocabulary(shape.vocab_size, vocab_size, f"model.weights = {settings.weights!r}: its vocab_size")
    if sequence_length > shape.max_position_embeddings:
        raise UserError(
            f"sequence_length = {sequence_length}: the model has {shape.max_position_embeddings} positions; shorten "
            "it or raise model.max_positions"
        )


def _check_vocabulary(model_vocab: int, vocab_size: int, key: str) -> None:
    if model_vocab < vocab_size:
        raise UserError(f"{key} = {model_vocab}: the token store has {vocab_size} ids; the model needs as many")


def flops_per_token(model: PreTrainedModel, sequence_length: int, with_embeddings: bool = False) -> float:
    """FLOPs of forward and backward per token: 6 N + 12 L d T (PaLM, Chowdhery et al. 2022, appendix B).

    N leaves out the input embedding, which is looked up and not multiplied, unless `with_embeddings`; the output
    layer counts either way. Embeddings tied to it are that layer.
    """
    num_parameters = sum(p.numel() for p in model.parameters())
    if not with_embeddings and not model.config.tie_word_embeddings:
        num_parameters -= model.get_input_embeddings().weight.numel()
    attention = 12 * model.config.num_hidden_layers * model.config.hidden_size * sequence_length
    return float(6 * num_parameters + attention)


def save_lm(model: PreTrainedModel, tokenizer: Path, folder: Path) -> None:
    """A folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True).save_pretrained(folder)
