"""Documentation strings become books of prose, without importing what they document."""

import textwrap
from pathlib import Path

import pytest

from quire.docstrings import Package, list_packages, prose, read_books
from quire.errors import UserError


def write(folder: Path, files: dict[str, str]) -> Package:
    """A package "fake" in `folder` with these sources; importing any of them would fail."""
    sources = []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\nraise RuntimeError('imported')\n")
        parts = name.removesuffix(".py").removesuffix("/__init__").split("/")
        sources.append((".".join(parts), path))
    return Package("fake", "1.0", tuple(sorted(sources)))


def paragraphs(docstring: str) -> list[str]:
    return list(prose(textwrap.dedent(docstring).strip("\n")))


def test_docstrings_are_read_in_source_order(tmp_path):
    source = '''
        """The module comes before everything that it holds."""
        class A:
            """The class comes before all of its methods."""
            if True:
                def f(self):
                    """The method comes before the function that follows."""
        async def g():
            """The coroutine function comes last of all of these."""
        x = """This string is assigned to a name, so it documents nothing."""
    '''
    package = write(tmp_path, {"fake/__init__.py": "", "fake/a.py": textwrap.dedent(source)})
    (book,) = read_books(package, min_chars=1)
    assert book.author == "fake"
    assert book.title == "fake.a"
    assert [line.split()[1] for line in book.text.split("\n\n")] == ["module", "class", "method", "coroutine"]


def test_code_tables_headings_and_types_are_left_out():
    assert paragraphs("""
        Return the mean of all the values
        that the caller has given.

        Parameters
        ----------
        values : array_like, of any shape and of any real type.
            The values that shall be averaged, in any order.

        Examples
        --------
        >>> mean([1, 2, 3])
        the output of an example is not prose at all.

        The next example has a literal block of code::

            this is a literal block and not a sentence.

        .. code-block:: python

            this is a block of code and not a sentence.

        .. note:: The first line of a note is a sentence that
           goes on in the next line.

        ======  ==================================
        a name  what this name stands for in here.
        ======  ==================================
        :rtype: a list of the means of all the columns.
    """) == [
        "Return the mean of all the values that the caller has given.",
        "The values that shall be averaged, in any order.",
        "The first line of a note is a sentence that goes on in the next line.",
    ]


def test_each_parameter_is_a_paragraph_without_its_name():
    assert paragraphs("""
        Args:
            size (int, optional): The number of rows that
                one block of the table holds.
            names: The names of the columns in their order,
                one of these modes: by number or by letter.
        :param path: The file that the table is read from.
        - The first item of a list is long enough.
        - mode: The second item has a name before it.
    """) == [
        "The number of rows that one block of the table holds.",
        "The names of the columns in their order, one of these modes: by number or by letter.",
        "The file that the table is read from.",
        "The first item of a list is long enough.",
        "The second item has a name before it.",
    ]


def test_markup_is_removed_and_its_text_stays():
    assert paragraphs(
        "Use ``fit`` of :class:`~pkg.Model` as *described* in `the guide <https://example.org/a>`_ [1]_ "
        "or [the page](https://example.org/b)."
    ) == ["Use fit of pkg.Model as described in the guide or the page."]


@pytest.mark.parametrize(
    "text",
    [
        "Too short.",
        "A paragraph that has no end because it was cut",
        "x_1 = f(a_1, b_2) + g(c_3) x_2 = f(a_2, b_3) and so it goes on.",
        "3.2 4.5 6.7 8.9 1.2 3.4 are the values of it all.",
    ],
)
def test_what_is_no_sentence_is_left_out(text):
    assert paragraphs(text) == []


def test_an_unfinished_end_is_cut_off():
    text = "The values are sorted before they are used. For example:"
    assert paragraphs(text) == ["The values are sorted before they are used."]


def test_repeated_and_templated_paragraphs_are_kept_once(tmp_path):
    once = '"""Build a {} tokenizer with {} special tokens for the model."""'
    package = write(
        tmp_path,
        {
            "fake/__init__.py": "",
            "fake/a.py": once.format("CLIP", 2) + '\ndef f(): """Only the first module says this at all."""',
            "fake/b.py": once.format("BERT", 4) + '\ndef f(): """Only the second module says this at all."""',
        },
    )
    text = "\n\n".join(book.text for book in read_books(package, min_chars=1))
    assert text.count("tokenizer") == 1
    assert "Only the first" in text and "Only the second" in text


def documented(word: str, num_paragraphs: int) -> str:
    """A module with so many different paragraphs of about 60 characters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = [
        f"The {word} takes its part number {letters[i // 26]}{letters[i % 26]}x from the shelf in time."
        for i in range(num_paragraphs)
    ]
    return '"""' + "\n\n".join(lines) + '\n"""'


def test_the_largest_modules_become_books_public_ones_first(tmp_path):
    package = write(
        tmp_path,
        {
            "fake/__init__.py": "",
            "fake/small.py": documented("small", 10),
            "fake/large.py": documented("large", 40),
            "fake/deep/__init__.py": documented("deep", 10),
            "fake/deep/deeper.py": documented("deeper", 20),
            "fake/_private.py": documented("private", 100),
            "fake/tiny.py": documented("tiny", 2),
        },
    )

    def titles(**bounds) -> list[str]:
        return [book.title for book in read_books(package, **bounds)]

    assert titles(min_chars=300) == ["fake._private", "fake.deep", "fake.large", "fake.small"]
    assert titles(min_chars=300, max_books=2) == ["fake.deep", "fake.large"]
    assert titles(min_chars=300, max_books=3) == ["fake.deep", "fake.large", "fake.small"]


def test_a_book_is_cut_between_paragraphs(tmp_path):
    package = write(tmp_path, {"fake/__init__.py": "", "fake/a.py": documented("large", 40)})
    (whole,) = read_books(package, min_chars=1)
    (cut,) = read_books(package, min_chars=1, max_chars=1000)
    kept = cut.text.split("\n\n")
    assert kept == whole.text.split("\n\n")[: len(kept)]
    following = whole.text.split("\n\n")[len(kept)]
    assert len(cut.text) <= 1000 < len(cut.text) + 2 + len(following)


def test_a_package_within_a_namespace_is_split_below_it(tmp_path):
    files = {
        "space/core/__init__.py": "",
        "space/core/a.py": documented("first", 10),
        "space/core/b.py": documented("second", 10),
    }
    titles = [book.title for book in read_books(write(tmp_path, files), min_chars=100)]
    assert titles == ["space.core.a", "space.core.b"]


def test_a_source_that_cannot_be_parsed_is_named_in_its_book(tmp_path):
    package = write(
        tmp_path,
        {
            "fake/__init__.py": "",
            "fake/a/__init__.py": documented("good", 10),
            "fake/a/template.py": '"""Text"""\n{% if x %}',
        },
    )
    (book,) = read_books(package, min_chars=100)
    (skipped,) = book.skipped
    assert skipped.startswith("fake.a.template: ")


@pytest.mark.parametrize("bounds", [{"min_chars": 0}, {"min_chars": 9, "max_chars": 8}, {"max_books": 0}])
def test_bounds_that_contradict_are_refused(bounds):
    with pytest.raises(UserError, match=next(iter(bounds))):
        read_books(Package("fake", "1.0", ()), **bounds)


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(UserError, match="no-such-package"):
        list_packages(("numpy", "no-such-package"))


def test_an_installed_package_becomes_books_without_its_tests():
    (numpy,) = list_packages(("NumPy",))
    assert numpy.name == "numpy"
    assert not [module for module, _ in numpy.files if "tests" in module.split(".")]
    books = read_books(numpy)
    assert 3 <= len(books) <= 8
    assert all(book.title.startswith("numpy.") and 12_000 <= len(book.text) <= 120_000 for book in books)
    lines = [line for book in books for line in book.text.split("\n\n")]
    assert len(lines) == len(set(lines))
    assert not [line for line in lines if ">>>" in line or "\n" in line or len(line.split()) < 6]
