"""Ids, authors and rights as the catalogue states them, in both its forms; namesakes apart, the nameless never one."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from quire import catalogue
from quire.catalogue import Choice, read_catalogue
from quire.errors import UserError

HEAD = "Text#,Type,Issued,Title,Language,Authors,Subjects,LoCC,Bookshelves\n"
CSV = (
    HEAD
    + """\
98,Text,1994-01-01,A Tale of Two Cities,en,"Dickens, Charles, 1812-1870",,,
99,Text,1994-01-01,"A Title
Over Two Lines",en; fr,"Smith, John, 1800-1850; Lang, Andrew, 1844-1912 [Editor]",,,
100,Text,1994-01-01,Another,en,"Smith, John, 1850-1900; Dickens, Charles, 1812-1870",,,
101,Text,1994-01-01,Letters,en,Various,,,
102,Sound,1994-01-01,A Song,en,Anonymous,,,
103,Text,1994-01-01,Songs,de,"Lang, Andrew, 1844-1912 [Editor]",,,
104,Text,1994-01-01,Epic,en,"Homer, 751? BCE-651? BCE",,,
""".replace("\n", "\r\n")
)
RDF = """<?xml version="1.0" encoding="utf-8"?>
<rdf:RDF xml:base="http://www.gutenberg.org/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dcterms="http://purl.org/dc/terms/" xmlns:pgterms="http://www.gutenberg.org/2009/pgterms/"
 xmlns:marcrel="http://id.loc.gov/vocabulary/relators/">
 <pgterms:ebook rdf:about="ebooks/{number}">
  <dcterms:title>{title}</dcterms:title>
  <dcterms:creator><pgterms:agent rdf:about="2009/agents/{agent}"><pgterms:name>{name}</pgterms:name>
   <pgterms:birthdate>1812</pgterms:birthdate></pgterms:agent></dcterms:creator>
  <marcrel:edt><pgterms:agent rdf:about="2009/agents/9"><pgterms:name>Lang, Andrew</pgterms:name></pgterms:agent>
  </marcrel:edt>
  <dcterms:rights>{rights}</dcterms:rights>
  <dcterms:language><rdf:Description rdf:nodeID="a"><rdf:value>en</rdf:value></rdf:Description></dcterms:language>
  <dcterms:type><rdf:Description rdf:nodeID="b"><rdf:value>Text</rdf:value></rdf:Description></dcterms:type>
 </pgterms:ebook>
</rdf:RDF>"""
FREE, HELD = "Public domain in the USA.", "Copyrighted. Read the copyright notice inside this book for details."


def rdf(*rows: tuple[int, str, str, str], mode: str = "w:bz2") -> bytes:
    texts = [
        (number, RDF.format(number=number, title=f"T{number}", agent=agent, name=name, rights=rights))
        for number, agent, name, rights in rows
    ]
    return archive(*texts, mode=mode)


def archive(*texts: tuple[int, str], mode: str = "w:bz2") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as made:
        for number, text in texts:
            member = tarfile.TarInfo(f"cache/epub/{number}/pg{number}.rdf")
            member.size = len(text.encode())
            made.addfile(member, io.BytesIO(text.encode()))
    return sink.getvalue()


def spoiled(data: bytes, at: int) -> bytes:
    """With another byte in one place."""
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def zipped(name: str, data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as made:
        made.writestr(name, data)
    return sink.getvalue()


ROWS = [
    (1, "37", "Dickens, Charles", FREE),
    (2, "37", "Dickens, Charles John Huffam", HELD),
    (3, "216", "Unknown", FREE),
]


def test_the_csv_states_titles_languages_and_authors_with_their_years() -> None:
    found = read_catalogue(CSV.encode(), "c.csv")
    assert found == read_catalogue(gzip.compress(CSV.encode()), "c.csv.gz")
    assert (found[99].title, found[99].languages) == ("A Title Over Two Lines", ("en", "fr"))
    assert found[98].identity().author_name == "Charles Dickens" and found[104].identity().author_name == "Homer"
    keys = {number: entry.identity().authors for number, entry in found.items()}
    assert keys[98] == ("charles_dickens_1812_1870",) and keys[98][0] in keys[100]
    assert not set(keys[99]) & set(keys[100])  # two John Smiths, and an editor is no author
    assert keys[101] == keys[102] == keys[103] == ()


def test_the_archive_states_agents_and_rights() -> None:
    found = read_catalogue(rdf(*ROWS), "rdf-files.tar.bz2")
    assert found[1].identity().authors == found[2].identity().authors == ("agent_37",)  # under another name
    assert found[1].identity().author == found[2].identity().author
    assert found[3].identity().authors == () and found[2].rights == HELD
    assert read_catalogue(zipped("rdf-files.tar", rdf(*ROWS, mode="w")), "rdf-files.tar.zip") == found


def described(agent: str, name: str) -> str:
    return f'<pgterms:agent rdf:about="2009/agents/{agent}"><pgterms:name>{name}</pgterms:name></pgterms:agent>'


POINTED = '<dcterms:creator rdf:resource="{}2009/agents/37"/>'
BOZ = described("37", "Dickens, Charles")


@pytest.mark.parametrize(
    ("creators", "elsewhere", "keys", "by"),
    [
        (POINTED.format(""), BOZ, ("agent_37",), "Charles Dickens"),
        (POINTED.format("http://www.gutenberg.org/"), BOZ, ("agent_37",), "Charles Dickens"),
        (
            POINTED.format("") + BOZ.join(("<dcterms:creator>", "</dcterms:creator>")),
            "",
            ("agent_37",),
            "Charles Dickens",
        ),
        (
            f"<dcterms:creator>{described('5', 'Collins, Wilkie')}</dcterms:creator>" + POINTED.format(""),
            BOZ,
            ("agent_5", "agent_37"),
            "Wilkie Collins; Charles Dickens",
        ),
        (POINTED.format(""), "", ("agent_37",), "agent 37"),  # described nowhere: known by number alone
        (POINTED.format(""), described("37", "Various"), (), "Various"),
        ("<dcterms:creator/>", BOZ, (), "Unknown"),
    ],
)
def test_a_creator_by_reference_is_the_agent_that_the_file_describes(
    creators: str, elsewhere: str, keys: tuple[str, ...], by: str
) -> None:
    head, _, rest = RDF.partition("  <dcterms:creator>")
    text = head + creators + rest.partition("</dcterms:creator>")[2].replace("</rdf:RDF>", f"{elsewhere}</rdf:RDF>")
    found = read_catalogue(archive((1, text.format(number=1, title="T", rights=FREE))), "rdf")[1].identity()
    assert (found.authors, found.author_name) == (keys, by)


@pytest.mark.parametrize(
    ("choice", "refused"),
    [
        ({}, {102: "other_kind"}),
        ({"kinds": []}, {}),
        ({"languages": ["en"]}, {99: "other_language", 102: "other_kind", 103: "other_language"}),
        ({"languages": ["en", "fr", "de"]}, {102: "other_kind"}),
        ({"authors": ["Dickens, Charles"], "kinds": []}, dict.fromkeys((99, 101, 102, 103, 104), "other_author")),
        ({"authors": ["john smith"], "kinds": []}, dict.fromkeys((98, 101, 102, 103, 104), "other_author")),
        (
            {"authors": ["john_smith_1850_1900"], "kinds": []},
            dict.fromkeys((98, 99, 101, 102, 103, 104), "other_author"),
        ),
    ],
)
def test_what_is_not_chosen_says_why(choice: dict, refused: dict[int, str]) -> None:
    entries = read_catalogue(CSV.encode(), "c.csv")
    chosen = Choice.model_validate(choice, strict=False)
    assert {n: reason for n, entry in entries.items() if (reason := chosen.refusal(entry)[0])} == refused


def test_rights_and_agents_are_chosen_from_the_archive() -> None:
    entries = read_catalogue(rdf(*ROWS), "rdf")
    free = Choice(rights=("public domain in the USA",))
    assert [n for n, entry in entries.items() if not free.refusal(entry)[0]] == [1, 3]
    dickens = Choice(authors=("37",))
    assert [n for n, entry in entries.items() if not dickens.refusal(entry)[0]] == [1, 2]
    assert catalogue.has_rights(entries) and not catalogue.has_rights(read_catalogue(CSV.encode(), "c.csv"))


def test_one_record_that_cannot_be_read_is_refused_by_its_id_and_the_others_are_read() -> None:
    many = [(number, str(number), "A", FREE) for number in range(1, 200)]
    entries = read_catalogue(rdf(*many, (200, "200", "A & B", FREE)), "rdf")
    refused = {number: why for number, entry in entries.items() if (why := Choice(kinds=()).refusal(entry))[0]}
    assert len(entries) == 200 and list(refused) == [200] and refused[200][0] == "damaged_record"
    assert "cache/epub/200/pg200.rdf: not XML" in refused[200][1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"id,title\n1,x\n", "c: no column 'Text#'"),
        (HEAD.encode() + b"one,Text,,T,en,A,,,\n", "c, line 2: Text# = 'one'"),
        (gzip.compress(CSV.encode())[:-30], "c: neither a CSV"),
        (CSV.encode()[:-1], "c: its last line is cut"),
        (CSV.encode()[: CSV.index("en,Various")], "c: its last line is cut"),
        (CSV.encode()[: CSV.index("Over Two")], "c: a damaged CSV .unexpected end of data"),
        (b"\xff\xfe\x00", "c: neither a CSV"),
        (rdf(*ROWS)[:-40], "c: a damaged archive|c: neither a CSV"),
        (rdf((1, "1", "A & B", FREE)), r"c: cache/epub/1/pg1.rdf: not XML"),
        (rdf(), "c: no file such as"),
        (HEAD.encode(), "c: it lists no book"),
        (HEAD.encode() + b"1,Text,,T,en\n2,Text,,T,en,A,,,\n", "c, line 2: not as many fields as the first line"),
        (HEAD.encode() + b"1,Text,,T, unquoted,en,A,,,\n", "c, line 2: not as many fields as the first line"),
        (spoiled(gzip.compress(CSV.encode()), 40), "c: neither a CSV"),
        (spoiled(zipped("rdf-files.tar", rdf(*ROWS, mode="w")), 3_000), "c: a damaged archive .Bad CRC-32"),
        (zipped("a.txt", b""), "c: 0 .tar or .csv files inside"),
    ],
)
def test_what_is_no_catalogue_says_so(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_catalogue(data, "c")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_that_lacks_its_end_or_has_a_damaged_header_is_refused_and_not_read_in_part(mode: str) -> None:
    plain = rdf(*ROWS, mode="w")
    second = plain.index(b"cache/epub/2/")
    pack = {"w": bytes, "w:gz": gzip.compress, "w:bz2": bz2.compress, "w:xz": lzma.compress}[mode]
    assert sorted(read_catalogue(pack(plain), "c")) == [1, 2, 3]
    for damaged in (plain[:second], plain[: second + 100], plain[: second + 600], spoiled(plain, second)):
        with pytest.raises(UserError, match="c: a damaged archive"):
            read_catalogue(pack(damaged), "c")


def test_an_archive_whose_last_bytes_do_not_add_up_is_refused() -> None:
    packed = rdf(*ROWS, mode="w:gz")
    with pytest.raises(UserError, match="c: a damaged archive .CRC check failed"):
        read_catalogue(spoiled(packed, len(packed) - 6), "c")
