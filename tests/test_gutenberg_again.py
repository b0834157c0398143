"""A harvest that is run again: what failed is tried again, what came is not sent again."""

from pathlib import Path

import pytest
from gutenberg_server import Fault, Server, number_of, path_of, small_book
from gutenberg_steps import FILES, contents, metadata, settings

from pipelines import gutenberg as step
from quire.errors import UserError


def test_failures_stop_the_run_are_listed_and_tried_again_alone(tmp_path: Path, harvest_here: None) -> None:
    asked = ["select.ids=[1, 2, 9]"]
    with Server(FILES, {2: Fault("status", 10, "500 Broken")}) as server:
        with pytest.raises(UserError, match=r"1 book\(s\) failed, .*\n  pg2: server_error: .*\n.*retry_failed=true"):
            step.run(settings(tmp_path, server, *asked))
        begun = len(server.paths)
        with pytest.raises(UserError, match="1 book"):
            step.run(settings(tmp_path, server, *asked))
        assert len(server.paths) == begun  # the same line asks for nothing that is settled
        made = step.run(settings(tmp_path, server, *asked, "runtime.retry_failed=true"))
        assert {number_of(path) for path in server.paths[begun:]} == {2}
        assert made.read()["document_id"].to_pylist() == ["pg1", "pg2"] and made.manifest["facts"]["failed"] == {}
        whole = step.run(settings(tmp_path, server, *asked, "name=whole"))
    assert contents(made) == contents(whole)


def test_what_failed_before_a_kill_and_came_later_is_no_longer_among_the_rejects(
    tmp_path: Path, harvest_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["select.ids=[1, 2]", "runtime.max_failed=1"]
    with Server(FILES, {2: Fault("html")}) as server:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(step, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            step.run(settings(tmp_path, server, *asked))
        assert (tmp_path / "documents/g/rejects-00000.parquet").exists()
        server.faults.clear()
        made = step.run(settings(tmp_path, server, *asked, "runtime.retry_failed=true"))
        whole = step.run(settings(tmp_path, server, *asked, "name=whole"))
    assert contents(made) == contents(whole) and not made.manifest["dropped"]


def test_fetched_books_of_which_no_document_was_made_are_not_deleted_for_another_recipe(
    tmp_path: Path, harvest_here: None
) -> None:
    german = {path_of(n): small_book(n).replace(b"Language: English", b"Language: German") for n in (1, 2)}
    asked = ["select.ids=[1, 2]"]
    with Server(german) as server:
        with pytest.raises(UserError, match=r"no document survived: .*not_english.*name= and runtime.previous=g$"):
            step.run(settings(tmp_path, server, *asked))
        with pytest.raises(UserError, match="was begun by another recipe"):
            step.run(settings(tmp_path, server, *asked, "english=false"))
        begun = len(server.paths)
        made = step.run(settings(tmp_path, server, *asked, "english=false", "name=all", "runtime.previous=g"))
        assert all("if-none-match" in headers for headers in server.headers[begun:])
    assert made.manifest["rows_out"] == made.manifest["facts"]["unchanged"] == 2


def test_a_book_that_lacks_its_end_is_taken_once_that_is_allowed(tmp_path: Path, harvest_here: None) -> None:
    cut = small_book(1).partition(b"*** END")[0]
    with Server(FILES | {path_of(1): cut}) as server:
        with pytest.raises(UserError, match="pg1: truncated: .*no END line"):
            step.run(settings(tmp_path, server, "select.ids=[1]"))
        allowed = ["select.ids=[1]", 'allow_unended=["pg1"]', "runtime.retry_failed=true"]
        assert step.run(settings(tmp_path, server, *allowed)).manifest["rows_out"] == 1


def test_a_later_artefact_is_sent_only_what_changed(tmp_path: Path, harvest_here: None) -> None:
    asked = ["select.first=1", "select.last=3", "keep_raw=true"]
    with Server(FILES) as server:
        first = step.run(settings(tmp_path, server, *asked))
        server.files[path_of(2)] = small_book(22)
        begun = len(server.paths)
        again = step.run(settings(tmp_path, server, *asked, "name=later", "runtime.previous=g"))
        conditional = [headers for headers in server.headers[begun:] if "if-none-match" in headers]
        assert len(server.paths) - begun == len(conditional) == 3 and again.manifest["facts"]["unchanged"] == 2
    assert [a == b for a, b in zip(first.read()["text"], again.read()["text"], strict=True)] == [True, False, True]
    with pytest.raises(UserError, match="runtime.previous = 'bare': it holds no raw/"), Server(FILES) as server:
        step.run(settings(tmp_path, server, "name=bare", "select.ids=[1]"))
        step.run(settings(tmp_path, server, "name=after", "select.ids=[1]", "runtime.previous=bare"))


def test_a_host_without_etags_is_asked_by_the_date(tmp_path: Path, harvest_here: None) -> None:
    asked = ["select.first=1", "select.last=3", "keep_raw=true"]
    with Server(FILES) as server:
        server.etags = False
        first = step.run(settings(tmp_path, server, *asked))
        server.files[path_of(2)], server.modified[path_of(2)] = small_book(22), "Wed, 02 Sep 2020 10:00:00 GMT"
        again = step.run(settings(tmp_path, server, *asked, "name=later", "runtime.previous=g"))
        third = step.run(settings(tmp_path, server, *asked, "name=third", "runtime.previous=later"))
        assert len(server.paths) == 9 and all("if-modified-since" in headers for headers in server.headers[3:])
    assert [a == b for a, b in zip(first.read()["text"], again.read()["text"], strict=True)] == [True, False, True]
    assert [made.manifest["facts"]["unchanged"] for made in (again, third)] == [2, 3]
    assert contents(third) == contents(again)


def test_what_failed_in_a_published_harvest_is_asked_for_alone_under_another_name(
    tmp_path: Path, harvest_here: None
) -> None:
    german = small_book(4).replace(b"Language: English", b"Language: German")
    asked = ["select.ids=[1, 2, 4, 9]", "keep_raw=true"]
    with Server(FILES | {path_of(4): german}, {2: Fault("html", 2 * 5)}) as server:
        first = step.run(settings(tmp_path, server, *asked, "runtime.max_failed=1"))
        assert first.manifest["facts"]["failed"] == {"pg2": "html"}
        server.faults.clear()
        begun = len(server.paths)
        again = settings(tmp_path, server, *asked, "name=later", "runtime.previous=g", "runtime.retry_failed=true")
        made = step.run(again)
        assert server.paths[begun:] == [path_of(2)] and made.manifest["facts"]["unchanged"] == 2
        plain = step.run(settings(tmp_path, server, *asked, "name=plain"))
        before, after = ({row["gutenberg_id"]: row for row in metadata(a)} for a in (first, made))
        assert all(before[n] == after[n] for n in (1, 4, 9))  # fetched_at with it
    assert contents(made) == contents(plain) and made.manifest["rows_out"] == 2
    (tmp_path / "documents/g/raw/pg1.txt").write_bytes(b"spoiled")
    with pytest.raises(UserError, match=r"pg1.txt has changed since it was fetched"), Server(FILES) as server:
        step.run(again.model_copy(update={"name": "third"}))


@pytest.mark.parametrize("kept", ["true", "false"])
def test_what_an_unfinished_harvest_has_fetched_is_not_sent_again(
    tmp_path: Path, harvest_here: None, kept: str
) -> None:
    with Server(FILES, {3: Fault("html")}) as server:
        with pytest.raises(UserError, match=r"1 book\(s\) failed"):
            step.run(settings(tmp_path, server, "select.ids=[1, 2, 3]", f"keep_raw={kept}"))
        server.faults.clear()
        begun = len(server.paths)
        asked = ["name=wider", "select.ids=[1, 2, 3, 4]", "runtime.previous=g"]
        made = step.run(settings(tmp_path, server, *asked))
        conditional = [number_of(p) for p, h in zip(server.paths, server.headers, strict=True) if "if-none-match" in h]
        assert sorted(conditional) == [1, 2] and {number_of(path) for path in server.paths[begun:]} == {1, 2, 3, 4}
        plain = step.run(settings(tmp_path, server, *asked[:2], "name=plain"))
        assert contents(made) == contents(plain)


def test_an_unfinished_harvest_without_a_book_is_none_to_start_from(tmp_path: Path, harvest_here: None) -> None:
    with Server(FILES, {1: Fault("html")}) as server:
        with pytest.raises(UserError, match=r"1 book\(s\) failed"):
            step.run(settings(tmp_path, server, "select.ids=[1]"))
        with pytest.raises(UserError, match="runtime.previous = 'g': it is unfinished and has fetched no book; leave"):
            step.run(settings(tmp_path, server, "name=wider", "select.ids=[1]", "runtime.previous=g"))


def test_a_book_refused_once_it_was_read_is_not_sent_again(tmp_path: Path, harvest_here: None) -> None:
    files = FILES | {path_of(4): small_book(4).replace(b"Language: English", b"Language: German")}
    asked = ["select.ids=[3, 4]", "keep_raw=true"]
    with Server(files) as server:
        first = step.run(settings(tmp_path, server, *asked))
        again = step.run(settings(tmp_path, server, *asked, "name=later", "runtime.previous=g"))
        assert all("if-none-match" in headers for headers in server.headers[2:]) and len(server.paths) == 4
    assert contents(again) == contents(first) and metadata(again)[1]["sha256"]
    assert again.manifest["facts"]["unchanged"] == 2 and again.manifest["dropped"] == {"not_english": 1}
