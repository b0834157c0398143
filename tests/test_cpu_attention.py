"""Attention whose gradient is taken in float32 is torch's own, only nearer to the true one, and leaves no trace."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertModel, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from quire import cpu_attention, device

BERT = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
SIZES = BERT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NEOX = BERT | {"attention_dropout": 0.0, "hidden_dropout": 0.0}


@pytest.fixture
def multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "precision", lambda: torch.bfloat16)


def drawn(*shape: int) -> list[torch.Tensor]:
    """Query, key, value and the gradient of what attention makes of them, in bfloat16."""
    torch.manual_seed(0)
    return [torch.randn(shape).bfloat16() for _ in range(4)]


def ragged(texts: int, length: int) -> torch.Tensor:
    """A mask (texts, 1, length, length) of texts that are padded on the right, as transformers makes it."""
    lengths = torch.arange(texts) * length // (2 * texts) + length // 2
    return (torch.arange(length) < lengths[:, None])[:, None, None].expand(texts, 1, length, length)


@pytest.mark.parametrize("form", ["plain", "masked", "causal"])
def test_its_gradient_is_nearer_to_the_true_one_than_torch_s_in_bfloat16(form: str) -> None:
    *inputs, gradient = drawn(3, 2, 40, 16)
    mask = ragged(3, 40) if form == "masked" else None
    plain = lambda q, k, v: scaled_dot_product_attention(q, k, v, mask, is_causal=form == "causal")  # noqa: E731

    def own(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        module = SimpleNamespace(is_causal=form == "causal")
        return cpu_attention.attention(module, q, k, v, mask)[0].transpose(1, 2)

    def gradients(attend, given: list[torch.Tensor]) -> list[torch.Tensor]:
        given = [x.detach().requires_grad_() for x in given]
        return list(torch.autograd.grad(attend(*given), given, gradient.to(given[0].dtype)))

    true = gradients(plain, [x.float() for x in inputs])
    ours, theirs = gradients(own, inputs), gradients(plain, inputs)
    for one, other, right in zip(ours, theirs, true, strict=True):
        assert one.dtype == torch.bfloat16
        error, usual = ((x.float() - right).norm() / right.norm() for x in (one, other))
        assert error < min(0.005, 1.05 * usual)
    torch.testing.assert_close(own(*inputs), plain(*inputs), rtol=0, atol=0)


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "bert":
        return BertModel(BertConfig(**SIZES))
    return GPTNeoXForCausalLM(GPTNeoXConfig(**NEOX))


@pytest.mark.parametrize("kind", ["bert", "neox"])
def test_a_model_trains_as_with_the_attention_that_it_came_with(kind: str, multiplies_bfloat16: None) -> None:
    ids = torch.arange(2 * 24).reshape(2, 24) % 50
    mask = (torch.arange(24) < torch.tensor([[24], [13]])).long()

    def gradients(model: PreTrainedModel) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(input_ids=ids, attention_mask=mask)[0]
        ((out.float() * mask[..., None]) ** 2).mean().backward()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])

    usual, model = gradients(model_of(kind)), model_of(kind)
    cpu_attention.use(model)
    assert model.config._attn_implementation == cpu_attention.NAME
    found = gradients(model)
    assert (found - usual).norm() / usual.norm() < 0.02


def test_a_saved_model_does_not_know_of_it(tmp_path: Path, multiplies_bfloat16: None) -> None:
    model = model_of("bert")
    cpu_attention.use(model)
    model.save_pretrained(tmp_path)
    assert cpu_attention.NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert BertModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_it_is_used_only_where_training_is_in_bfloat16_on_a_cpu_and_attention_is_the_usual_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for precision, place, kind in [
        (torch.float32, "cpu", "sdpa"),
        (torch.bfloat16, "cuda", "sdpa"),
        (torch.bfloat16, "cpu", "eager"),
    ]:
        monkeypatch.setattr(device, "precision", lambda found=precision: found)
        monkeypatch.setattr(device, "device", lambda found=place: torch.device(found))
        model = model_of("bert")
        model.set_attn_implementation(kind)
        cpu_attention.use(model)
        assert model.config._attn_implementation == kind


@pytest.mark.parametrize("other", ["float32", "dropout", "fewer key heads", "no gradient", "a mask that learns"])
def test_all_else_is_left_to_transformers(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(
        cpu_attention, "sdpa_attention_forward", lambda *a, **k: called.append(1) or sdpa_attention_forward(*a, **k)
    )
    query, key, value, _ = drawn(2, 4, 8, 16)
    if other == "float32":
        query, key, value = query.float(), key.float(), value.float()
    module = SimpleNamespace(is_causal=False)
    if other == "fewer key heads":
        key, value, module = key[:, :2], value[:, :2], SimpleNamespace(is_causal=False, num_key_value_groups=2)
    query.requires_grad_(other != "no gradient")
    mask = torch.zeros(2, 1, 8, 8, dtype=query.dtype).requires_grad_() if other == "a mask that learns" else None
    made, _ = cpu_attention.attention(module, query, key, value, mask, dropout=0.5 * (other == "dropout"))
    assert called and made.shape == (2, 8, 4, 16)
    if mask is not None:
        made.sum().backward()
        assert mask.grad is not None


def test_a_model_that_may_ask_for_the_name_of_its_attention_keeps_it(multiplies_bfloat16: None) -> None:
    model = model_of("bert")
    model.config.model_type = "another"
    cpu_attention.use(model)
    assert model.config._attn_implementation == "sdpa"
