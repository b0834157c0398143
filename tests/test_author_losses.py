"""The losses by author beside naive twins: other works attract, other groups repel, all else is left alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import losses


def normal(rows: int, seed: int) -> torch.Tensor:
    made = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)).double()
    return torch.nn.functional.normalize(made, dim=1)


# work, author (-1: nobody known), author group: the author of work 5 once wrote with that of 2 and 3
SHELF = torch.tensor([(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 1), (4, -1, 2), (5, 2, 1), (6, -1, 3)])


def naive_author_info_nce(e: torch.Tensor, rows: list[list[int]], t: float) -> float:
    terms = []
    for i, (work, author, group) in enumerate(rows):
        positives = [j for j, (w, a, _) in enumerate(rows) if a == author >= 0 and w != work]
        strangers = [j for j, (_, _, g) in enumerate(rows) if g != group]
        sums = sum(math.exp(t * float(e[i] @ e[k])) for k in [*positives, *strangers])
        if positives:
            terms.append(sum(math.log(sums) - t * float(e[i] @ e[p]) for p in positives) / len(positives))
    return sum(terms) / max(1, len(terms))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=9), st.integers(0, 99))
def test_info_nce_by_author_equals_its_naive_twin(works: list[int], seed: int) -> None:
    e, inverse, rows = normal(len(works), seed), torch.tensor(7.0, dtype=torch.float64), SHELF[works]
    found = losses.supervised_info_nce(e, rows[:, 0], inverse, authors=losses.Authors(rows[:, 1], rows[:, 2]))
    assert float(found) == pytest.approx(naive_author_info_nce(e, rows.tolist(), 7.0), abs=1e-9)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=7), st.integers(0, 99))
def test_the_pair_loss_by_author_equals_its_naive_twin(works: list[int], seed: int) -> None:
    rows, e = SHELF[[0, 1, *works]], normal(2 + len(works), seed)
    logits, parts = 3 * e @ e.T, {1: [], 0: []}
    for i, (work, author, group) in enumerate(rows.tolist()):
        for j, (w, a, g) in enumerate(rows.tolist()[:i]):
            if a == author >= 0 and w != work:
                parts[1].append(math.log1p(math.exp(-float(logits[i, j]))))
            elif g != group:
                parts[0].append(math.log1p(math.exp(float(logits[i, j]))))
    expected = np.mean([np.mean(part) for part in parts.values() if part])
    found = losses.balanced_pair_loss(logits, rows[:, 0], losses.Authors(rows[:, 1], rows[:, 2]))
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_texts_of_one_work_and_of_co_authors_do_not_move_each_other() -> None:
    e, rows = normal(6, 3).requires_grad_(), SHELF[[2, 2, 5, 2, 4, 6]]
    authors = losses.Authors(rows[:, 1], rows[:, 2])
    losses.supervised_info_nce(e, rows[:, 0], torch.tensor(5.0).double(), authors=authors).backward()
    assert torch.equal(e.grad, torch.zeros_like(e))  # nobody has another work of his own: nothing is learnt
