"""Encoding gives what the user's own library gives: with prompts, from ids, in half precision, in little memory."""

from collections.abc import Callable
from types import MethodType

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.attention import SDPBackend, sdpa_kernel

from quire import encoder, packing
from quire.errors import UserError

TEXTS = [
    f"the {word} of a captain and his ship at the harbour " * count for count, word in enumerate("abcdefghijkl", 1)
]


@pytest.fixture
def model(encoder_folder: str) -> SentenceTransformer:
    return encoder.load_encoder(encoder_folder)


def ids_of(model: SentenceTransformer, texts: list[str]) -> list[np.ndarray]:
    backend = model.tokenizer.backend_tokenizer
    backend.no_truncation()
    return [np.asarray(backend.encode(text, add_special_tokens=False).ids) for text in texts]


@pytest.mark.parametrize("prompt", ["", "clustering: ", "the ship:\n"])
def test_known_ids_behind_a_prompt_are_what_the_tokenizer_gives(model: SentenceTransformer, prompt: str) -> None:
    assert encoder.takes_ids(model, prompt)
    made, cut = encoder.framed(model, ids_of(model, TEXTS), prompt)
    expected, truncated = encoder.tokenize_counting(model, TEXTS, prompt=prompt)
    assert [ids.tolist() for ids in made] == [ids.tolist() for ids in expected]
    own = ids_of(model, TEXTS)
    around = len(expected[0]) - len(own[0])
    assert cut == truncated == sum(len(ids) + around > model.max_seq_length for ids in own) > 0
    assert max(len(ids) for ids in made) == model.max_seq_length  # the longest is cut


def test_a_prompt_that_runs_on_into_the_text_asks_for_the_text_itself(model: SentenceTransformer) -> None:
    assert not encoder.takes_ids(model, "pre")


@pytest.mark.parametrize("pooled", [True, False])
def test_a_prompt_is_read_as_the_users_library_reads_it(encoder_folder: str, pooled: bool) -> None:
    theirs = SentenceTransformer(encoder_folder, device="cpu")
    theirs.set_pooling_include_prompt(pooled)
    tokens = encoder.tokenize(theirs, TEXTS, prompt="the ship: ")
    ours = encoder.encode_tokens(theirs, tokens, packing.Budget(200), prompt="the ship: ")
    np.testing.assert_allclose(ours, theirs.encode(TEXTS, prompt="the ship: "), atol=1e-5)


def test_the_models_own_prompt_for_documents_is_the_default(model: SentenceTransformer) -> None:
    model.prompts = {"query": "q: ", "passage": "p: ", "other": "o: "}
    chosen = [encoder.document_prompt(model, *given) for given in [(None, None), (None, "other"), ("", "other")]]
    assert chosen == ["p: ", "o: ", ""]
    with pytest.raises(UserError, match="prompt_name = 'clustering': the model has query, passage, other"):
        encoder.document_prompt(model, None, "clustering")


def test_a_query_has_the_prompt_of_the_documents_or_the_models_own_for_queries(model: SentenceTransformer) -> None:
    model.prompts = {"query": "q: ", "passage": "p: ", "other": "o: "}
    chosen = [encoder.query_prompt(model, *given) for given in [(None, None), (None, "other"), ("x: ", None)]]
    assert chosen == ["q: ", "o: ", "x: "]


def no_room() -> None:
    raise torch.OutOfMemoryError("no room")


def no_room_on_a_cpu() -> None:
    torch.empty(2**60, dtype=torch.uint8)  # more than any machine addresses


def short_of_memory(model: SentenceTransformer, most: int, fail: Callable[[], None] = no_room) -> list[int]:
    """From now on no more than so many padded tokens fit; the sizes that were tried."""
    tried: list[int] = []
    whole = type(model).forward

    def forward(self: SentenceTransformer, features: dict, **kwargs: object) -> dict:
        tried.append(features["input_ids"].numel())
        if tried[-1] > most:
            fail()
        return whole(self, features, **kwargs)

    model.forward = MethodType(forward, model)
    return tried


@pytest.mark.parametrize("fail", [no_room, no_room_on_a_cpu])
def test_a_batch_beyond_memory_is_split_and_the_budget_lowered_for_good(
    fail: Callable[[], None], encoder_folder: str
) -> None:
    texts = TEXTS * 20
    expected = encoder.encode_tokens(
        m := encoder.load_encoder(encoder_folder), encoder.tokenize(m, texts), packing.Budget(512)
    )
    tight = encoder.load_encoder(encoder_folder)
    tried = short_of_memory(tight, 600, fail)
    budget = packing.Budget(4096)
    made = encoder.encode_tokens(tight, encoder.tokenize(tight, texts), budget)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert budget.lowered == sum(size > 600 for size in tried) <= 3
    assert 128 <= budget.tokens <= 600 and all(size <= 600 for size in tried[4:])


def test_another_mistake_of_a_model_is_no_lack_of_memory(model: SentenceTransformer) -> None:
    def wrong() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    short_of_memory(model, 0, wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        encoder.encode_tokens(model, encoder.tokenize(model, TEXTS))


def test_one_text_beyond_memory_is_a_mistake_that_is_told(model: SentenceTransformer) -> None:
    short_of_memory(model, 10)
    with pytest.raises(UserError, match="does not hold one text of 128 tokens; lower max_seq_length"):
        encoder.encode_tokens(model, encoder.tokenize(model, TEXTS), packing.Budget(256))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_direction_and_pools_in_float32(encoder_folder: str, dtype: torch.dtype) -> None:
    half = encoder.load_encoder(encoder_folder, dtype=dtype)
    exact = encoder.load_encoder(encoder_folder)
    # torch's fused attention in bf16 looks at the processor itself, not at what ATEN_CPU_CAPABILITY allows
    with sdpa_kernel(SDPBackend.MATH):
        made = encoder.encode_tokens(half, encoder.tokenize(half, TEXTS), autocast=torch.float32)
    expected = encoder.encode(exact, TEXTS)
    assert next(half[0].parameters()).dtype == dtype
    assert (made * expected).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "most", "expected"),
    [(torch.bfloat16, 128, [40, 96, 112, 112, 128]), (torch.bfloat16, 107, [40, 96, 107, 107, 107])]
    + [(torch.float32, 128, [40, 96, 97, 105, 113])],
)
def test_half_precision_on_a_cpu_pads_longer_texts_to_whole_registers(
    encoder_folder: str, dtype: torch.dtype, most: int, expected: list[int]
) -> None:
    model = encoder.load_encoder(encoder_folder, most, dtype)
    tokens = [np.full(min(size, most), 7, np.int32) for size in (40, 96, 97, 105, 113)]
    shapes: list[tuple[int, ...]] = []
    model[0].register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0]["input_ids"].shape)))
    with sdpa_kernel(SDPBackend.MATH):
        encoder.encode_tokens(model, tokens, packing.Budget(1), autocast=torch.float32)
        assert sorted(shapes) == [(1, longest) for longest in expected]
        shapes.clear()
        encoder.encode_tokens(model, tokens * 4, packing.Budget(300), autocast=torch.float32)
    assert all(rows * longest <= 300 for rows, longest in shapes)


def test_a_length_beyond_the_models_positions_is_refused(encoder_folder: str) -> None:
    with pytest.raises(UserError, match="max_seq_length = 500: the model at .* has 128 positions"):
        encoder.load_encoder(encoder_folder, 500)
