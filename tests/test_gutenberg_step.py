"""From ids to a `documents` artefact: fetched politely, refused, read by the book flow."""

import os
from pathlib import Path

import cluster
import gutenberg_world
import pytest
from gutenberg_server import Fault, Server, number_of, path_of, small_book
from gutenberg_steps import FILES, NUMBERS, check_world, contents, metadata, settings
from test_catalogue import CSV, FREE, HELD, rdf

from pipelines import chunk, documents
from pipelines import gutenberg as step
from quire import config
from quire.errors import UserError


def test_every_trouble_has_its_reason_and_nothing_stands_outside_the_root(tmp_path: Path, harvest_here: None) -> None:
    world, root = gutenberg_world.build(range(1, 81), {}, num_sentences=8), tmp_path / "root"
    asked = ["select.first=1", "select.last=80", "keep_raw=true", "max_bytes=4000000", "shard_books=30"]
    asked += ["runtime.limits.read=4", "runtime.limits.total=6", "runtime.concurrency=8"]
    with Server(world.files, world.faults) as server:
        made = step.run(settings(root, server, *asked, f"runtime.max_failed={world.failed()}"))
    check_world(world, made, root)
    assert {entry.name for entry in tmp_path.iterdir()} == {"root"}
    assert {entry.name for entry in root.iterdir()} == {"documents"}
    assert {entry.name for entry in (root / "documents").iterdir()} == {"g"}
    titles = [row["title"] for row in made.read(["title"]).to_pylist()]
    assert {"../../etc/x", "t" * 10_000} <= set(titles) and titles.count("One title") == 3


def test_ids_become_documents_and_each_has_a_row_that_says_what_became_of_it(
    tmp_path: Path, harvest_here: None
) -> None:
    files = FILES | {path_of(4): small_book(4).replace(b"Language: English", b"Language: German")}
    with Server(files) as server:
        made = step.run(settings(tmp_path, server, "select.first=1", "select.last=12", "keep_raw=true"))
        rows = metadata(made)
        assert [row["document_id"] for row in rows] == [f"pg{n}" for n in NUMBERS]
        assert {row["status"] for row in rows if row["gutenberg_id"] not in (4, 9)} == {"done"}
        assert (rows[3]["status"], rows[3]["reason"], len(rows[3]["sha256"])) == ("refused", "not_english", 64)
        assert (rows[8]["status"], rows[8]["reason"]) == ("missing", "absent")
        assert rows[0]["source_url"] == f"{server.base}/1/pg1.txt" and rows[0]["fetched_at"].endswith("+00:00")
    assert made.manifest["dropped"] == {"absent": 1, "not_english": 1}
    assert made.manifest["rows_in"] == 12 and made.manifest["rows_out"] == 10
    raw = tmp_path / "documents/g/raw"
    assert {file.name: file.read_bytes() for file in raw.iterdir()} == {
        f"pg{number_of(path)}.txt": body for path, body in files.items()
    }
    read = ["name=c", "documents=g", "split.method=balanced", f"runtime.root={tmp_path}"]
    chunks = chunk.run(config.load(chunk.CONFIG, None, read))
    assert set(chunks.read()["document_id"].to_pylist()) <= {f"pg{n}" for n in NUMBERS}


def test_the_documents_are_those_of_a_folder_of_the_same_files(tmp_path: Path, harvest_here: None) -> None:
    (tmp_path / "mirror/1/0").mkdir(parents=True)
    for n in (3, 10, 11):
        (tmp_path / f"mirror/{'1/0/' if n == 10 else ''}{n}.txt").write_bytes(small_book(n))
    with Server(FILES) as server:
        fetched = step.run(settings(tmp_path, server, "select.ids=[3, 10, 11]"))
    mirror = step.run(settings(tmp_path, None, "name=m", "source.kind=mirror", f"source.folder={tmp_path / 'mirror'}"))
    read = ["name=d", "source.kind=folder", f"source.folder={tmp_path / 'mirror'}", f"runtime.root={tmp_path}"]
    plain = documents.run(config.load(documents.CONFIG, None, read))
    columns = ["title", "author", "authors", "author_name", "anonymous", "text", "encoding", "kept"]
    assert fetched.read(columns) == mirror.read(columns)
    assert sorted(fetched.read(columns).to_pylist(), key=str) == sorted(plain.read(columns).to_pylist(), key=str)


def test_the_catalogue_chooses_and_tells_authors_apart(tmp_path: Path, harvest_here: None) -> None:
    (tmp_path / "c.csv").write_text(CSV)
    files = {path_of(n): small_book(n) for n in range(98, 105)}
    with Server(files) as server:
        chosen = [f"select.catalogue={tmp_path / 'c.csv'}", 'select.languages=["en"]']
        made = step.run(settings(tmp_path, server, *chosen))
        assert {number_of(path) for path in server.paths} == {98, 100, 101, 104}  # the rest was refused unasked
        named = step.run(settings(tmp_path, server, "name=n", *chosen, "select.ids=[98, 99, 5]"))
    assert {row["gutenberg_id"]: row["reason"] for row in metadata(made) if row["status"] == "refused"} == {
        99: "other_language",
        102: "other_kind",
        103: "other_language",
    }
    rows = {row["document_id"]: row for row in made.read().to_pylist()}
    assert rows["pg98"]["title"] == "A Tale of Two Cities" and rows["pg98"]["authors"] == ["charles_dickens_1812_1870"]
    assert rows["pg101"]["anonymous"] and rows["pg101"]["authors"] == []
    assert named.manifest["dropped"] == {"not_in_catalogue": 1, "other_language": 1}


def test_a_catalogue_behind_an_address_is_fetched_once_and_its_rights_are_kept(
    tmp_path: Path, harvest_here: None
) -> None:
    listing = rdf((1, "37", "Dickens, Charles", FREE), (2, "37", "Boz", HELD), (3, "37", "Boz", FREE))
    with Server(FILES | {"/feeds/rdf.tar.bz2": listing}, {2: Fault("status", value="500 No")}) as server:
        chosen = [f"select.catalogue=http://{server.host}/feeds/rdf.tar.bz2", "runtime.max_failed=0"]
        with pytest.raises(UserError, match=r"1 book\(s\) failed"):
            step.run(settings(tmp_path, server, *chosen))
        server.files["/feeds/rdf.tar.bz2"] = rdf((8, "1", "Another", FREE))
        made = step.run(settings(tmp_path, server, *chosen, "runtime.max_failed=1"))
        assert server.paths.count("/feeds/rdf.tar.bz2") == 1
        free = step.run(settings(tmp_path, server, "name=f", chosen[0], f'select.rights=["{FREE}"]'))
    assert [row["licence"] for row in metadata(made)] == [FREE, HELD, FREE]
    assert {tuple(row["authors"]) for row in made.read().to_pylist()} == {("agent_37",)}
    assert free.read()["document_id"].to_pylist() == ["pg8"]


def test_a_catalogue_that_cannot_be_read_is_asked_for_again(tmp_path: Path, harvest_here: None) -> None:
    listing = CSV.encode()
    with Server(FILES | {path_of(98): small_book(98), "/c.csv": listing}, {"/c.csv": Fault("html", 1)}) as server:
        asked = [f"select.catalogue=http://{server.host}/c.csv", "select.ids=[98]"]
        with pytest.raises(UserError, match=r"select.catalogue = 'http://.*/c.csv': html: .*a page in place"):
            step.run(settings(tmp_path, server, *asked))
        server.files["/c.csv"] = listing[: listing.index(b"en,Various")]
        with pytest.raises(UserError, match=r"/c.csv: its last line is cut"):
            step.run(settings(tmp_path, server, *asked))
        server.files["/c.csv"] = listing
        assert step.run(settings(tmp_path, server, *asked)).read()["title"].to_pylist() == ["A Tale of Two Cities"]


def test_a_host_that_blocks_ends_the_run_before_every_book_is_asked_for(tmp_path: Path, harvest_here: None) -> None:
    asked = ["select.first=1", "select.last=12", "runtime.patience=4", "runtime.concurrency=1", "runtime.max_failed=12"]
    with Server(FILES, dict.fromkeys(range(3, 13), Fault("html"))) as server:
        with pytest.raises(UserError, match=r"the last 4 books failed \(html 4\), .*http://127.0.0.1:.*/6/pg6.txt"):
            step.run(settings(tmp_path, server, *asked))
        assert {number_of(path) for path in server.paths} <= set(range(1, 8))
        server.faults.clear()
        begun = len(server.paths)
        made = step.run(settings(tmp_path, server, *asked, "runtime.retry_failed=true"))
        assert made.manifest["rows_out"] == 11 and not {1, 2} & set(map(number_of, server.paths[begun:]))


def test_a_run_that_goes_on_without_its_failures_says_which_they_are(tmp_path: Path, harvest_here: None) -> None:
    with Server(FILES, {2: Fault("html")}) as server:
        made = step.run(settings(tmp_path, server, "select.ids=[1, 2]", "runtime.max_failed=1"))
        again = settings(tmp_path, server, "select.ids=[1, 2]", "runtime.retry_failed=true")
        with pytest.raises(UserError, match="published without 1 book"):
            step.run(again)
    assert made.manifest["facts"]["failed"] == {"pg2": "html"} and made.manifest["dropped"] == {"failed_html": 1}


def test_what_the_catalogue_says_is_not_english_is_not_fetched_to_be_dropped(
    tmp_path: Path, harvest_here: None
) -> None:
    (tmp_path / "c.csv").write_text(CSV)
    asked = [f"select.catalogue={tmp_path / 'c.csv'}", "select.ids=[98, 99, 103]"]
    with Server({path_of(n): small_book(n) for n in (98, 99, 103)}) as server:
        made = step.run(settings(tmp_path, server, *asked))
        assert {number_of(path) for path in server.paths} == {98, 99}  # of two languages one is English
        every = step.run(settings(tmp_path, server, *asked, "name=every", "english=false"))
    assert made.manifest["dropped"] == {"not_english": 1} and every.manifest["rows_out"] == 3


def test_a_list_of_addresses_is_followed(tmp_path: Path, harvest_here: None) -> None:
    with Server(FILES | {"/odd/book.txt": small_book(50)}) as server:
        (tmp_path / "urls.txt").write_text(f"\ufeff{server.base}/3/pg3.txt\nhttp://{server.host}/odd/book.txt\n")
        made = step.run(settings(tmp_path, server, f"select.urls={tmp_path / 'urls.txt'}"))
    first, second = made.read()["document_id"].to_pylist()
    assert first == "pg3" and second.startswith("url-")


def test_a_bucket_holds_a_harvest_as_a_folder_does(
    tmp_path: Path, harvest_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.s3_server() as environment, Server(FILES, {2: Fault("status", 2, "500 No")}) as server:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        asked = ["select.ids=[1, 2, 3]", "keep_raw=true"]
        with pytest.raises(UserError, match="pg2: server_error"):
            step.run(settings("s3://corpora/q", server, *asked))
        begun = len(server.paths)
        made = step.run(settings("s3://corpora/q", server, *asked, "runtime.retry_failed=true"))
        assert {number_of(path) for path in server.paths[begun:]} == {2}
        local = step.run(settings(tmp_path, server, *asked))
        assert contents(made) == contents(local)
        assert not made.storage.files("documents/g/_work")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "select: nothing is chosen"),
        (["select.first=3"], "first = 3, last = None"),
        (["select.first=3", "select.last=1"], "first = 3, last = 1"),
        (["select.ids=[0]"], "ids: 0 is no Gutenberg id"),
        (['select.languages=["en"]'], "languages: only a catalogue can tell"),
        (["select.catalogue=/nowhere.csv"], "select.catalogue = '/nowhere.csv': no such file"),
        (["select.urls=/nowhere.txt"], "select.urls = '/nowhere.txt': no such file"),
        (["source.kind=mirror", "source.folder=/nowhere"], "source.folder = '/nowhere': no file such as 1342-0.txt"),
        (["select.ids=[1]", "runtime.contact=a\nX: y"], "runtime.contact"),
        (["select.ids=[1]", 'runtime.base_urls=["a.org/epub"]'], "base_urls.* 'a.org/epub' is no http.*need one"),
        (["select.ids=[1]", 'runtime.hosts=["https://a.org"]'], "hosts.* 'https://a.org': need a host"),
        (["select.ids=[1]", 'runtime.hosts=["A.org"]'], "hosts.* 'A.org': need a host or host:port in lower case"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_request(
    tmp_path: Path, changes: list[str], message: str, harvest_here: None
) -> None:
    with Server(FILES) as server:
        with pytest.raises(UserError, match=message):
            step.run(settings(tmp_path, server, *changes))
        assert not server.paths


def test_a_host_is_told_whom_to_write_to(tmp_path: Path, harvest_here: None) -> None:
    plain = config.load(step.CONFIG, None, ["name=g", f"runtime.root={tmp_path}", "select.ids=[1]"])
    with pytest.raises(UserError, match="runtime.contact: missing"):
        step.run(plain)


@pytest.mark.parametrize("rules", [b"User-agent: *\nDisallow: /cache/\n", b"User-agent: quire\nDisallow: /"])
def test_what_a_host_forbids_robots_is_not_asked_for(tmp_path: Path, harvest_here: None, rules: bytes) -> None:
    with Server(FILES) as server:
        server.robots = rules
        with pytest.raises(UserError, match="/robots.txt forbids robots .*/1/pg1.txt: set runtime.base_urls"):
            step.run(settings(tmp_path, server, "select.ids=[1]"))
        assert not server.paths
        made = step.run(settings(tmp_path, server, "select.ids=[1]", "runtime.obey_robots=false"))
        server.robots = b"User-agent: *\nDisallow: /ebooks/search\n"
        assert step.run(settings(tmp_path, server, "select.ids=[1]", "name=b")).read() == made.read()


def test_rights_that_a_catalogue_does_not_state_choose_nothing_silently(tmp_path: Path, harvest_here: None) -> None:
    (tmp_path / "c.csv").write_text(CSV)
    with pytest.raises(UserError, match="select.rights: .* states none; give the RDF archive"):
        step.run(settings(tmp_path, None, f"select.catalogue={tmp_path / 'c.csv'}", f'select.rights=["{FREE}"]'))


def test_the_best_file_of_a_mirror_is_read_and_what_it_lacks_is_named(tmp_path: Path, harvest_here: None) -> None:
    folder = tmp_path / "mirror/1/3/1342"
    (folder / "old").mkdir(parents=True)
    for name, number in {"1342.txt": 1, "1342-8.txt": 2, "1342-0.txt": 3, "old/1342-0.txt": 4, "readme.txt": 5}.items():
        (folder / name).write_bytes(small_book(number))
    (folder / "84.txt").write_bytes(small_book(6)[:900])
    os.utime(folder / "1342-0.txt", (1_598_954_400, 1_598_954_400))
    chosen = ["source.kind=mirror", f"source.folder={tmp_path / 'mirror'}", "select.ids=[84, 1342, 7]"]
    made = step.run(settings(tmp_path, None, *chosen))
    assert made.read(["document_id", "source"]).to_pylist() == [
        {"document_id": "pg1342", "source": "1/3/1342/1342-0.txt"}
    ]
    assert made.manifest["dropped"] == {"absent": 1, "failed_truncated": 1}
    (row,) = (row for row in metadata(made) if row["status"] == "done")
    assert (row["fetched_at"], row["last_modified"]) == (None, "Tue, 01 Sep 2020 10:00:00 GMT")


def test_a_mirror_that_changes_while_it_is_read_says_so(
    tmp_path: Path, harvest_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/84.txt").write_bytes(small_book(84))
    monkeypatch.setattr(step.mirror, "best_files", lambda files: {84: "84.txt", 85: "85.txt"})
    with pytest.raises(UserError, match=r"85.txt went while the mirror was read: .* run the same line again"):
        step.run(settings(tmp_path, None, "source.kind=mirror", f"source.folder={tmp_path / 'mirror'}"))


def test_a_mirror_beside_a_catalogue_settles_every_id_that_either_has(tmp_path: Path, harvest_here: None) -> None:
    (tmp_path / "c.csv").write_text(CSV)
    (tmp_path / "mirror").mkdir()
    for name, number in {"98-8.txt": 98, "100.txt": 100, "7.txt": 7}.items():
        (tmp_path / "mirror" / name).write_bytes(small_book(number))
    chosen = ["source.kind=mirror", f"source.folder={tmp_path / 'mirror'}", f"select.catalogue={tmp_path / 'c.csv'}"]
    made = step.run(settings(tmp_path, None, *chosen, 'select.languages=["en"]'))
    assert {row["gutenberg_id"]: row["reason"] for row in metadata(made)} == {
        7: "not_in_catalogue",
        98: None,
        99: "other_language",
        100: None,
        101: "absent",
        102: "other_kind",
        103: "other_language",
        104: "absent",
    }
    assert made.read()["document_id"].to_pylist() == ["pg98", "pg100"]


@pytest.mark.ray
def test_each_worker_has_so_many_connections_and_never_more(tmp_path: Path, local_ray: None) -> None:
    with Server(FILES, dict.fromkeys(FILES, Fault("together", value="3"))) as server:
        asked = ["select.first=1", "select.last=8", "runtime.num_workers=1", "runtime.concurrency=3"]
        assert step.run(settings(tmp_path, server, *asked)).manifest["rows_out"] == 8
        assert server.max_open == 3


@pytest.mark.ray
def test_workers_share_one_rate_and_go_on_where_a_run_was_stopped(tmp_path: Path, local_ray: None) -> None:
    asked = ["select.first=1", "select.last=12", "runtime.num_workers=2", "runtime.concurrency=3"]
    with Server(FILES, {5: Fault("status", 1, "429 Slow|1")}) as server:
        made = step.run(settings(tmp_path, server, *asked, "runtime.rate=20"))
        times, at = sorted(server.times), server.paths.index(path_of(5))
        gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
        assert (times[-1] - times[0]) >= (len(times) - 1) / 20 * 0.8  # on average: the way to the server varies
        assert max(gaps) >= 0.7, at  # nobody asks while the host wants a pause
        again = settings(tmp_path, server, *asked, "name=again")
        blocked = tmp_path / "documents/again/part-00001.parquet"
        blocked.mkdir(parents=True)
        with pytest.raises(Exception, match="part-00001"):
            step.run(again)
        blocked.rmdir()
        begun = len(server.paths)
        resumed = step.run(again)
        assert len(server.paths) == begun
    assert contents(resumed) == contents(made) and made.manifest["rows_out"] == 11
