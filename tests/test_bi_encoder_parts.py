"""The bi-encoder's pooling, losses and adversary: each beside a naive twin, each saved for the users' library."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from quire import adversary, bi_encoder, contrastive, encoder, losses, sampler
from quire.attention import TokenGate, is_gate
from quire.errors import UserError

TEXTS = ["The ship and the sail.", "A judge in court, a judge at trial, and the jury.", "Rose."]


def normal(rows: int, seed: int) -> torch.Tensor:
    made = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)).double()
    return torch.nn.functional.normalize(made, dim=1)


def naive_info_nce(e: torch.Tensor, works: list[int], mined: torch.Tensor, mined_works: list[int], t: float) -> float:
    terms = []
    for i, work in enumerate(works):
        positives = [j for j in range(len(works)) if j != i and works[j] == work]
        sums = sum(math.exp(t * float(e[i] @ e[k])) for k in range(len(works)) if k != i)
        sums += sum(math.exp(t * float(e[i] @ n)) for n, other in zip(mined, mined_works, strict=True) if other != work)
        if positives:
            terms.append(sum(math.log(sums) - t * float(e[i] @ e[p]) for p in positives) / len(positives))
    return sum(terms) / max(1, len(terms))


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=7), st.lists(st.integers(-1, 3), max_size=6), st.integers(0, 99)
)
def test_info_nce_with_mined_negatives_equals_its_naive_twin(works: list[int], mined: list[int], seed: int) -> None:
    e, n, inverse = normal(len(works), seed), normal(len(mined), seed + 1), torch.tensor(7.0, dtype=torch.float64)
    found = losses.supervised_info_nce(e, torch.tensor(works), inverse, n, torch.tensor(mined, dtype=torch.int64))
    assert float(found) == pytest.approx(naive_info_nce(e, works, n, mined, 7.0), abs=1e-9)


def test_a_mined_text_of_an_anchors_own_work_is_neither_its_positive_nor_its_negative() -> None:
    e, n, one = normal(3, 0), normal(1, 1).requires_grad_(), torch.tensor(1.0)
    losses.supervised_info_nce(e, torch.tensor([4, 4, 4]), one, n, torch.tensor([4])).backward()
    assert torch.equal(n.grad, torch.zeros_like(n))


def temperatures(module: contrastive.Module, sign: float) -> list[float]:
    """The inverse ones of 200 steps of Adam whose gradient has always that sign: positives near, or far apart."""
    near, far = torch.tensor([0.1, 0.0]), torch.tensor([0.0, 0.1])  # so short that no step leaves nothing to learn
    embeddings = torch.stack([near, near, far, far] if sign > 0 else [near, far, near, far])
    batch = {"works": torch.tensor([0, 0, 1, 1]), "features": torch.zeros(4, 4, 0)}
    optimizer, found = torch.optim.Adam([module.log_inverse_temperature], 5e-5), []
    for _ in range(200):
        optimizer.zero_grad()
        out = module.loss(embeddings, batch)
        out["loss"].backward()
        optimizer.step()
        found.append(out["inverse_temperature"].item())
    return found


def test_the_temperature_moves_at_the_rate_of_the_weights_keeps_its_bounds_and_comes_back_from_them() -> None:
    def begun(temperature: float) -> contrastive.Module:
        return contrastive.Module(torch.nn.Identity(), bi_encoder.PairHead(2, 2), temperature, pair_weight=0.0)

    for sign in (1, -1):
        found = temperatures(begun(0.07), sign)
        assert found[0] == pytest.approx(1 / 0.07) and sign * math.log(found[-1] / found[0]) > 0.4
    for bound, initial, sign in ((100.0, 0.0101, 1), (1.0, 0.99, -1)):
        module = begun(initial)
        there, back = temperatures(module, sign), temperatures(module, -sign)
        assert there[-1] == pytest.approx(bound, rel=1e-5)
        assert all(0.9999 < value < 100.01 for value in there + back)
        assert sign * math.log(bound / back[-1]) > 0.4


def naive_distillation(student: list[float], teacher: list[float], temperature: float) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = (1 / (1 + math.exp(-x / temperature)) for x in (t, s))
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return temperature**2 * total / len(student)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9), st.floats(0.5, 5))
def test_the_distillation_loss_equals_its_naive_twin(pairs: list[tuple[float, float]], temperature: float) -> None:
    student, teacher = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    found = losses.distillation_loss(student, teacher, temperature)
    assert float(found) == pytest.approx(
        naive_distillation(*map(list, zip(*pairs, strict=True)), temperature), abs=1e-9
    )


def test_a_students_logits_go_to_the_teachers() -> None:
    teacher, student = torch.tensor([3.0, -2.0, 0.5]), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([student], 0.1)
    for _ in range(400):
        optimizer.zero_grad()
        losses.distillation_loss(student, teacher, 2.0).backward()
        optimizer.step()
    torch.testing.assert_close(student.detach(), teacher, rtol=0, atol=1e-2)


def test_the_adversary_learns_and_its_gradient_reaches_the_encoder_turned_round_and_weighed() -> None:
    torch.manual_seed(0)
    made, present = adversary.Adversary(5, 4, 0.3), (torch.rand(6, 4) < 0.3).float()
    turned, plain = (normal(6, 0).float().requires_grad_() for _ in range(2))
    found = made(turned, present)
    logits = made.head(5**0.5 * plain).double()
    naive = (
        sum(
            -math.log(p) if here else -math.log(1 - p)
            for p, here in zip(logits.sigmoid().flatten().tolist(), present.flatten().tolist(), strict=True)
        )
        / present.numel()
    )
    assert found.item() == pytest.approx(naive, abs=1e-6)
    found.backward()
    own = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    torch.nn.functional.binary_cross_entropy_with_logits(made.head(5**0.5 * plain), present).backward()
    torch.testing.assert_close(turned.grad, -0.3 * plain.grad)
    for gradient, parameter in zip(own, made.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_content_words_are_neither_common_nor_rare_and_their_presence_is_told() -> None:
    texts = [np.asarray([1, 2 + i % 20, *([50] if i % 25 == 0 else [])]) for i in range(1000)]  # 1 in all, 50 in 4 %
    texts[0] = np.asarray([1, 2, 50, 99])  # 99 in one of a thousand
    words = adversary.content_words(texts, 3)
    assert words.tolist() == [2, 3, 4] and 50 in adversary.content_words(texts, 30)
    assert not {1, 99} & set(adversary.content_words(texts, 30).tolist())
    assert adversary.presence(texts[:2], words).tolist() == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(UserError, match="adversary_weight"):
        adversary.content_words([np.asarray([1])] * 9, 3)


def trained_gate(folder: str) -> bi_encoder.BiEncoder:
    model = bi_encoder.build_encoder(folder, pooling="attention", max_seq_length=64).eval()
    torch.manual_seed(2)
    torch.nn.init.normal_(model[1].query.weight, std=0.2)  # more, and every gate would be open
    torch.nn.init.constant_(model[1].query.bias, -0.5)
    torch.nn.init.normal_(model[3].linear.weight)
    return bi_encoder.BiEncoder(model, bi_encoder.PairHead(32, 8).eval())


def test_attention_starts_as_the_mean_and_is_a_weighted_mean_whose_weights_sum_to_one(encoder_folder: str) -> None:
    new = bi_encoder.build_encoder(encoder_folder, pooling="attention", max_seq_length=64).eval()
    mean = bi_encoder.build_encoder(encoder_folder, pooling="mean", max_seq_length=64).eval()
    np.testing.assert_allclose(encoder.encode(new, TEXTS), encoder.encode(mean, TEXTS), atol=1e-6)
    model = trained_gate(encoder_folder).model
    found = encoder.encode(model, TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.from_numpy(encoder.tokenize(model, [text])[0]).long()[None]
        with torch.no_grad():
            tokens = model[0]({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["token_embeddings"][0]
            gates = torch.sigmoid(tokens @ model[1].query.weight[0] + model[1].query.bias)
            attended = (gates / gates.sum()) @ tokens  # weights of sum one
            expected = torch.nn.functional.normalize(model[3].linear.weight @ attended, dim=0)
        assert gates.max() > 1.02 * gates.min()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_attention_is_saved_in_modules_of_the_users_library_and_goes_on_training(
    encoder_folder: str, tmp_path: Path
) -> None:
    made = trained_gate(encoder_folder)
    made.save(tmp_path / "m")
    types = [module["type"] for module in json.loads((tmp_path / "m" / "modules.json").read_text())]
    assert all(name.startswith("sentence_transformers.") for name in types) and len(types) == 5
    theirs = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, made.encode(TEXTS), atol=1e-5)
    again = bi_encoder.BiEncoder.load(tmp_path / "m")
    assert is_gate(again.model[1]) and bi_encoder.pooling_of(again.model) == "attention"
    further = bi_encoder.BiEncoder.go_on(tmp_path / "m", 32)
    assert isinstance(further.model[1], TokenGate) and further.model.max_seq_length == 32
    np.testing.assert_allclose(further.encode(TEXTS), made.encode(TEXTS), atol=1e-5)
    assert not any(".pooler." in name for name, p in further.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_the_pooling_of_a_saved_model_is_known(pooling: str, encoder_folder: str, tmp_path: Path) -> None:
    model = bi_encoder.build_encoder(encoder_folder, pooling=pooling, max_seq_length=32)
    bi_encoder.BiEncoder(model, bi_encoder.PairHead(32)).save(tmp_path)
    found = bi_encoder.BiEncoder.go_on(tmp_path, 32).model
    assert bi_encoder.pooling_of(found) == bi_encoder.pooling_of(model) == pooling


def batches() -> sampler.BookBatches:
    works = {f"w{i}": np.asarray([(10 * i + j, 900 * j, 900 * j + 500) for j in range(6)]) for i in range(4)}
    return sampler.BookBatches(works, {}, works_per_batch=3, chunks_per_work=2, hard_share=0.0, seed=1)


def test_mined_negatives_are_drawn_anew_each_step_from_those_of_the_chunk_and_filled_up_at_random() -> None:
    made = batches()
    mined = {
        row: np.asarray([(row + 10) % 40, (row + 20) % 40, 95])
        for work in range(3)
        for row in range(10 * work, 10 * work + 6)
    }
    hard = sampler.HardNegatives(mined, made, 2)
    seen = set()
    for step in range(20):
        anchors, _ = made.plan(step)
        rows, works = hard.plan(step, 0, anchors)
        assert rows.shape == works.shape == (12,)
        for anchor, drawn in zip(anchors.tolist(), rows.reshape(6, 2).tolist(), strict=True):
            assert anchor not in mined or (set(drawn) <= set(mined[anchor].tolist()) and len(set(drawn)) == 2)
            assert anchor in mined or all(row // 10 < 4 for row in drawn)
        assert works.tolist() == [-1 if row == 95 else row // 10 for row in rows.tolist()]
        assert np.array_equal(sampler.HardNegatives(mined, batches(), 2).plan(step, 0, anchors)[0], rows)
        seen.add(tuple(rows.tolist()))
    assert len(seen) == 20 and hard.covered == 0.75


def test_a_chunk_without_mined_negatives_takes_those_of_its_work_first() -> None:
    hard = sampler.HardNegatives({0: np.asarray([20, 21]), 10: np.asarray([31])}, batches(), 2)
    for step in range(10):
        drawn = hard.plan(step, 0, np.asarray([1, 11, 0]))[0].reshape(3, 2).tolist()
        assert set(drawn[0]) == {20, 21} and 31 in drawn[1] and set(drawn[2]) == {20, 21}


def test_streams_of_pair_batches_differ() -> None:
    labels = np.asarray([1, 0] * 20)
    plain, taught = (sampler.PairBatches(labels, batch_size=8, seed=3, stream=s) for s in (0, sampler.TAUGHT))
    assert not np.array_equal(plain.plan(0, 0, 1)[0], taught.plan(0, 0, 1)[0])
