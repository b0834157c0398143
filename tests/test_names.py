"""Slugs are short, plain and do not collide; names that name nobody are known; masked texts hold no name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.errors import UserError
from quire.names import is_anonymous, slug
from quire.proper_names import masked


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Charlotte Brontë", "charlotte_bronte"),
        ("Alice’s Adventures -- in Wonderland!", "alice_s_adventures_in_wonderland"),
        ("Antoine de Saint-Exupéry", "antoine_de_saint_exupery"),
        ("Søren Kierkegaard", "soren_kierkegaard"),
        ("Works, Volume 2 (of 3)", "works_volume_2_of_3"),
        ("J. R. R. Tolkien", "j_r_r_tolkien"),
        ("", "untitled"),
    ],
)
def test_slugs_of_latin_names(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_names_in_other_scripts_do_not_collide() -> None:
    names = ["Война и мир", "Анна Каренина", "源氏物語", "枕草子", "Война (war)", "Мир (war)", "!!!", "???"]
    assert len({slug(name) for name in names}) == len(names)


def test_long_names_that_begin_alike_do_not_collide() -> None:
    one, other = slug("The works of " * 20 + "one"), slug("The works of " * 20 + "two")
    assert one != other
    assert max(len(one), len(other)) <= 80


@given(st.text(), st.integers(20, 120))
def test_slugs_are_plain_and_within_their_length(name: str, max_length: int) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", slug(name, max_length))
    assert len(slug(name, max_length)) <= max_length


def test_a_length_with_no_room_for_the_hash_is_refused() -> None:
    with pytest.raises(UserError, match="max_length = 10"):
        slug("name", 10)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "Anonymous",
        "anon.",
        "Unknown",
        "unknown_author",
        "Various",
        "VARIOUS AUTHORS",
        "Misc.",
        "Multiple Authors",
        "multiple_authors",
    ],
)
def test_nobody(name: str) -> None:
    assert is_anonymous(name)


@pytest.mark.parametrize("name", ["Jane Austen", "Anona Miscov", "Variousa", "Лев Толстой", "Author of Waverley"])
def test_somebody(name: str) -> None:
    assert not is_anonymous(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We met Tom Sawyer in London.", "We met Name Name in Name."),
        ("Heathcliff looked up. The dog barked.", "Name looked up. The dog barked."),
        ("“Dinah, where are you?” said she to Dinah.", "“Name, where are you?” said she to Name."),
        ("Running home, I saw Mr. Darcy’s horse.", "Running home, I saw Mr. Name’s horse."),
        ("HEATHCLIFF! he cried. It was Heathcliff.", "Name! he cried. It was Name."),
        (
            "The rose is red. Rose, my dear, and young Rose came.",
            "The rose is red. Name, my dear, and young Name came.",
        ),
        ("Will you come? She loves Will.", "Will you come? She loves Name."),
        ("It's late, and I know that I'm tired.", "It's late, and I know that I'm tired."),
        ("The whale dived. Whale oil burns.", "The whale dived. Whale oil burns."),
        ("On Friday J. Smith left France for Saint-Malo.", "On Name Name. Name left Name for Saint-Name."),
        ("Élise vit Zoë.", "Name vit Name."),
        ("", ""),
    ],
)
def test_names_are_masked_and_other_words_are_not(text: str, expected: str) -> None:
    assert masked(text) == expected


@given(st.text(), st.sampled_from([" ", ". ", ", ", "! “"]), st.text())
def test_masking_changes_words_with_a_capital_alone(before: str, mark: str, after: str) -> None:
    text = f"{before}{mark}{after}"
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", masked(text))
    plain = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text)
    assert len(words) == len(plain)
    assert all(a == b or (b[0].isupper() and a.startswith("Name")) for a, b in zip(words, plain, strict=True))
