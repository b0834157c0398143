"""English is told from its neighbours, by chunk and by document."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.decode import decode
from quire.english import is_english, latin_share, looks_english, telling_share

BOOKS = Path(__file__).parents[2] / "shared" / "data" / "books"

FOREIGN = {
    "french": (
        "Nous étions à l'étude, quand le Proviseur entra, suivi d'un nouveau habillé en bourgeois et d'un garçon de "
        "classe qui portait un grand pupitre. Ceux qui dormaient se réveillèrent, et chacun se leva comme surpris dans "
        "son travail. Le Proviseur nous fit signe de nous rasseoir; puis, se tournant vers le maître d'études: on me "
        "dit que si son travail et sa conduite sont méritoires, il passera dans les grands, où l'appelle son âge."
    ),
    "german": (
        "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich in seinem Bett zu einem "
        "ungeheueren Ungeziefer verwandelt. Er lag auf seinem panzerartig harten Rücken und sah, wenn er den Kopf ein "
        "wenig hob, seinen gewölbten, braunen Bauch. Was ist mit mir geschehen? dachte er. Es war kein Traum, so was "
        "will man her und hin wenden, wie man will, und in die Hand nehmen, an was man so denkt."
    ),
    "latin": (
        "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani, tertiam qui ipsorum "
        "lingua Celtae, nostra Galli appellantur. Hi omnes lingua, institutis, legibus inter se differunt. Gallos ab "
        "Aquitanis Garumna flumen, a Belgis Matrona et Sequana dividit. Horum omnium fortissimi sunt Belgae, propterea "
        "quod a cultu atque humanitate provinciae longissime absunt."
    ),
    "dutch": (
        "Ik ben makelaar in koffie, en woon op de Lauriergracht. Het is mijn gewoonte niet, romans te schrijven, of "
        "zulke dingen, en het heeft dan ook lang geduurd voor ik er toe overging een paar riem papier extra te "
        "bestellen, en het werk aan te vangen dat gij, lieve lezer, zo-even in de hand hebt genomen. We had over was."
    ),
    "spanish": (
        "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo de los "
        "de lanza en astillero, adarga antigua, rocín flaco y galgo corredor. Una olla de algo más vaca que carnero, "
        "salpicón las más noches, duelos y quebrantos los sábados, me he de acordar, consumían las tres partes."
    ),
    "italian": (
        "Quel ramo del lago di Como, che volge a mezzogiorno, tra due catene non interrotte di monti, tutto a seni e "
        "a golfi, a seconda dello sporgere e del rientrare di quelli, vien, quasi a un tratto, a ristringersi, e a "
        "prender corso e figura di fiume, tra un promontorio a destra, e un'ampia costiera dall'altra parte."
    ),
    "danish": (
        "Der kom en soldat marcherende hen ad landevejen: en, to! en, to! Han havde sit tornyster på ryggen og en "
        "sabel ved siden, for han havde været i krigen, og nu skulle han hjem. Så mødte han en gammel heks på "
        "landevejen; hun var så ækel, hendes underlæbe hang hende lige ned på brystet."
    ),
}
ENGLISH = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of "
    "some one or other of their daughters."
)


@pytest.mark.parametrize("language", FOREIGN)
def test_a_foreign_document_is_refused(language: str) -> None:
    assert not looks_english(FOREIGN[language] * 30)


def test_an_english_document_is_accepted() -> None:
    assert looks_english(ENGLISH * 30)
    assert looks_english(ENGLISH)


def test_an_english_preface_saves_no_foreign_book() -> None:
    assert not looks_english(ENGLISH * 10 + FOREIGN["french"] * 40)


def test_foreign_passages_cost_no_english_book() -> None:
    assert looks_english(FOREIGN["latin"] * 5 + ENGLISH * 40 + FOREIGN["french"] * 5)


def test_a_chunk_of_english_passes_and_one_without_stop_words_does_not() -> None:
    assert is_english(ENGLISH)
    assert not is_english("Gallia omnis divisa est partes tres, quarum unam incolunt Belgae, aliam Aquitani.")
    assert not is_english("Мой дядя самых честных правил, когда не в шутку занемог, the of and уважать себя заставил.")


def test_the_same_stop_word_twice_is_one_hit() -> None:
    assert not is_english("the Gallia omnis divisa the partes tres the quarum unam the incolunt")
    assert is_english("the Gallia omnis divisa and partes tres quarum unam incolunt")


def test_short_texts_pass_unjudged() -> None:
    assert is_english("Ja.")
    assert looks_english("Oui, monsieur.")


def test_text_without_letters_is_not_english() -> None:
    assert not is_english("1234 5678 " * 10)
    assert not looks_english("1234 5678 " * 1_000)


@given(st.text())
def test_shares_are_shares(text: str) -> None:
    assert 0 <= latin_share(text) <= 1
    assert 0 <= telling_share(text) <= 1


def test_english_books_look_english() -> None:
    if not BOOKS.is_dir():
        pytest.skip("the shared test books are not here")
    texts = {path.name: decode(path.read_bytes()).text for path in sorted(BOOKS.glob("*.txt"))[::4]}
    assert [name for name, text in texts.items() if not looks_english(text)] == []
