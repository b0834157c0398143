"""The flow from a harvest on: books fetched from a server become chunks, neighbours and pairs by the real steps."""

from pathlib import Path

import pytest
from gutenberg_server import Server, path_of, small_book
from test_catalogue import FREE, HELD, rdf

from quire import flow

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[1]
AUTHORS = ["Dickens, Charles", "Hardy, Thomas", "Austen, Jane", "James, Henry", "Twain, Mark", "Eliot, George"]


def test_a_harvest_becomes_pairs_by_the_flow(
    tmp_path: Path, local_ray: None, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    listed = [(n, str(n // 2), AUTHORS[n // 2], FREE) for n in range(12)]
    listing = rdf(*((n + 1, *rest) for n, *rest in listed), (13, "116", "Various", FREE), (14, "0", AUTHORS[0], HELD))
    files = {path_of(n): small_book(n, 60) for n in range(1, 15)} | {"/rdf.tar.bz2": listing}
    with Server(files) as server:
        given = [f"root={tmp_path / 'root'}", "num_workers=2", "chunk.size=6", "embed.max_seq_length=64"]
        given += [f"embed.model={encoder_folder}", "documents.runtime.contact=tests@example.org"]
        given += [f'documents.runtime.base_urls=["{server.base}"]', "documents.runtime.rate=1000"]
        given += [f"documents.select.catalogue=http://{server.host}/rdf.tar.bz2"]
        whole = flow.load_flow("flows/gutenberg.toml", given)
        first = whole.model_copy(update={"steps": whole.steps[:5]})
        made = flow.run(first)
        begun = len(server.paths)
        again = flow.run(first)
        assert len(server.paths) == begun and again["pairs"].content == made["pairs"].content
    assert made["documents"].manifest["dropped"] == {"other_author": 1, "other_rights": 1}
    chunks, pairs = made["chunk"].read(), made["pairs"].read()
    assert set(chunks["author"].to_pylist()) == {f"agent_{n}" for n in range(6)}
    assert set(pairs["work_a"].to_pylist()) == {f"pg{n}" for n in range(1, 13)} == set(chunks["work_id"].to_pylist())
    kinds = set(zip(pairs["label"].to_pylist(), pairs["negative_type"].to_pylist(), strict=True))
    assert {(1, None), (0, "same_author")} <= kinds
