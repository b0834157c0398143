"""Counts of chunks by hand."""

import numpy as np

from quire.chunk_statistics import statistics, text_hashes, told


def test_counts_by_hand() -> None:
    found = statistics(np.array([1, 9, 10, 55, 100]), text_hashes(["a", "b", "a", "a", "日"]), 100)
    assert (found["rows"], found["tokens"], found["duplicates"]) == (5, 175, 2)
    assert found["tiny"] == {"2": 0.2, "10": 0.4, "50": 0.6}
    assert found["histogram"]["edges"] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101]
    assert found["histogram"]["counts"] == [3, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert told(found) == "35.0 tokens a chunk, 20.0% below 2, 40.0% below 10, 60.0% below 50; 40.0% duplicates"


def test_every_length_lies_in_a_bin() -> None:
    for max_tokens in (1, 2, 7, 10, 250, 512):
        lengths = np.arange(1, max_tokens + 1)
        found = statistics(lengths, np.arange(max_tokens), max_tokens)
        edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
        assert sum(counts) == max_tokens and counts == np.diff(edges).tolist()


def test_no_chunk_is_no_error() -> None:
    found = statistics(np.zeros(0, int), text_hashes([]), 10)
    assert (found["rows"], found["tokens"], found["duplicates"], found["tiny"]["2"]) == (0, 0, 0, 0.0)
