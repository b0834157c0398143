"""The trainers' own modules over several workers: the same gradients as one worker with the global batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import workers
from sentence_transformers import CrossEncoder

from quire import adversary, bi_encoder, encoder, gradcache, loop, packing, views
from quire.contrastive import Module
from quire.cross_encoder import build_model, features, tokenize_pairs
from trainers import cross_encoder as cross_trainer

TEXTS = [
    f"the {word} and the {other}, a {word}." for word in ("ship", "rose", "judge", "crew") for other in ("sea", "war")
]
WORKS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 3])


def bi_module(folder: str) -> tuple[bi_encoder.BiEncoder, Module]:
    torch.manual_seed(1)
    model = bi_encoder.build_encoder(folder, pooling="mean", max_seq_length=32)
    fitted = views.Views.fit(TEXTS, ["words", "style"])
    head = bi_encoder.PairHead(model.get_embedding_dimension(), 8, len(fitted.feature_names))
    torch.nn.init.normal_(head.out.weight)
    return bi_encoder.BiEncoder(model, head, fitted), Module(model, head, 0.1, 1.0).eval()  # eval: no dropout


def bi_batch(bi: bi_encoder.BiEncoder, mine: slice) -> dict[str, torch.Tensor]:
    ids, mask = packing.pad(encoder.tokenize(bi.model, TEXTS[mine]), 0)
    rows = bi.views.rows(TEXTS)  # of the global batch, on every rank
    features = torch.from_numpy(bi.views.all_pairs(rows, rows))
    return {"input_ids": ids, "attention_mask": mask, "features": features, "works": WORKS[mine]}


def full_module(folder: str, chunk_size: int | None) -> tuple[bi_encoder.BiEncoder, Module]:
    """With all that a batch may hold besides."""
    bi, plain = bi_module(folder)
    topics = adversary.Adversary(bi.head.width, 7, 0.5)
    module = Module(plain.model, plain.head, 0.1, 1.0, (0.7, 2.0), topics).eval()
    module.chunk_size = chunk_size
    return bi, module


def full_batch(bi: bi_encoder.BiEncoder, mine: slice) -> dict[str, torch.Tensor]:
    mined, first, second = TEXTS[::-1], TEXTS[3:] + TEXTS[:3], TEXTS[5:] + TEXTS[:5]
    texts = [text for part in (TEXTS, mined, first, second) for text in part[mine]]
    ids, mask = packing.pad(encoder.tokenize(bi.model, texts), 0)
    draw = torch.Generator().manual_seed(0)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "features": bi_batch(bi, mine)["features"],
        "taught_features": torch.from_numpy(bi.views.compare(first[mine], second[mine])),
        "works": WORKS[mine],
        "negative_works": torch.tensor([5, 0, 5, 1, 2, -1, 5, 3])[mine],
        "teacher": torch.randn(len(TEXTS), generator=draw)[mine],
        "topics": (torch.rand(len(TEXTS), 7, generator=draw) < 0.3).float()[mine],
    }


def cross_module(folder: str) -> tuple[CrossEncoder, cross_trainer.Module]:
    torch.manual_seed(1)
    model = build_model(folder, 40)
    return model, cross_trainer.Module(model, 1.0).eval()


def cross_batch(model: CrossEncoder, mine: slice) -> dict[str, torch.Tensor]:
    pairs = [(TEXTS[i] * (1 + i % 3), TEXTS[-1 - i]) for i in range(len(TEXTS))]  # of different lengths
    tokens, types = tokenize_pairs(model, pairs[mine])
    labels = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0])[mine]
    return {**features(tokens, types, model), **cross_trainer.alone(tokens, types, 0), "labels": labels}


def modules(folder: str) -> dict[str, tuple[torch.nn.Module, Callable[[slice], dict[str, torch.Tensor]]]]:
    """Each trainer's module, and its batch of a slice of the rows."""
    (bi, bi_loss), (cross, cross_loss) = bi_module(folder), cross_module(folder)
    (full, full_loss), (_, cached) = full_module(folder, None), full_module(folder, 5)
    return {
        "bi_encoder": (bi_loss, lambda mine: bi_batch(bi, mine)),
        "full": (full_loss, lambda mine: full_batch(full, mine)),
        "cached": (cached, lambda mine: full_batch(full, mine)),
        "cross_encoder": (cross_loss, lambda mine: cross_batch(cross, mine)),
    }


def _worker(rank: int, world: int, folder: str, encoder_folder: str, which: str) -> None:
    torch.set_num_threads(1)
    workers.join(folder, rank, world)
    size = len(TEXTS) // world
    module, batch = modules(encoder_folder)[which]
    wrapped = loop.distributed(module)
    for _ in range(3):  # a parameter without a gradient stops the second step
        module.zero_grad()
        mine = batch(slice(rank * size, (rank + 1) * size))
        if isinstance(module, gradcache.Contrastive):
            mine = gradcache.all_but_last(module, mine, 1.0)
        out = wrapped(mine)
        out["loss"].backward()
    mean = out["loss"].detach().clone()
    dist.all_reduce(mean)
    if rank == 0:
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        torch.save({"loss": mean / world, "gradients": gradients}, f"{folder}/two.pt")
    workers.leave()


@pytest.mark.parametrize("which", ["bi_encoder", "full", "cached", "cross_encoder"])
def test_two_workers_have_the_gradients_of_one(which: str, encoder_folder: str, tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, args=(2, str(tmp_path), encoder_folder, which), nprocs=2)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    module, batch = modules(encoder_folder)[which]
    loss = module(batch(slice(None)))["loss"]
    loss.backward()
    torch.testing.assert_close(two["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert gradients.keys() == two["gradients"].keys()
    assert gradients.keys() == {name for name, p in module.named_parameters() if p.requires_grad}
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_each_text_alone_has_the_tokens_that_it_has_in_the_pair(encoder_folder: str) -> None:
    model = build_model(encoder_folder, 40)
    pairs = [("the ship", "a rose and a judge and a crew"), ("the judge, the crew, the rose " * 9, "ship " * 99)]
    tokens, types = tokenize_pairs(model, pairs)
    joint, _ = packing.pad(tokens, 0)
    apart = cross_trainer.alone(tokens, types, 0)
    same = joint.flatten()[apart["place"]], apart["alone_ids"].flatten()[apart["alone_place"]]
    assert torch.equal(*same) and len(same[0]) == sum(len(ids) - 3 for ids in tokens)  # without [CLS], [SEP], [SEP]
    expected, _ = packing.pad([ids for pair in pairs for ids in encoder.tokenize(model, pair, 40)][:2], 0)
    assert torch.equal(apart["alone_ids"][:2, : expected.shape[1]], expected)


def test_the_imitation_loss_equals_its_naive_twin() -> None:
    draw = np.random.default_rng(0)
    found, wanted = draw.normal(size=(7, 5)), draw.normal(2, 3, size=(7, 5))
    mean = sum(wanted.reshape(-1)) / 35
    variance = sum((x - mean) ** 2 for x in wanted.reshape(-1)) / 34
    expected = sum((a - b) ** 2 for a, b in zip(found.reshape(-1), wanted.reshape(-1), strict=True)) / 35 / variance
    loss = cross_trainer.share_of_variance(torch.from_numpy(found), torch.from_numpy(wanted))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_imitation_teaches_the_pair_model_to_keep_two_texts_apart(encoder_folder: str) -> None:
    model = build_model(encoder_folder, 40)
    module = cross_trainer.Module(model, 1.0).eval()
    tokens, types = tokenize_pairs(model, [(TEXTS[0], TEXTS[3]), (TEXTS[5], TEXTS[6])])
    batch = {
        **features(tokens, types, model),
        **cross_trainer.alone(tokens, types, 0),
        "labels": torch.tensor([0.0, 1.0]),
    }
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    before = module(dict(batch))["imitation"]
    assert len(list(module.parameters())) == len(list(model.parameters()))  # the copy that is imitated is not trained
    for _ in range(20):
        optimizer.zero_grad()
        out = module(dict(batch))
        out["loss"].backward()
        optimizer.step()
    assert 0 < out["imitation"] < 0.5 * before
