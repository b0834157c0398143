"""Text to measure with that is on every installation: the documentation of installed Python packages."""

from collections.abc import Iterator

from quire import docstrings

DOCUMENT_CHARS = 2_000
PACKAGES = ("numpy", "scipy", "scikit-learn", "pandas", "networkx", "sympy", "matplotlib", "transformers", "botocore")


def corpus(megabytes: float) -> Iterator[str]:
    """Texts of about `DOCUMENT_CHARS` characters, `megabytes` of them in all."""
    packages = docstrings.list_packages(PACKAGES)
    found = [docstrings.read_books(package, max_books=50, max_chars=10**6) for package in packages]
    books = [book.text for books in found for book in books]
    size = 0
    while True:
        for text in books:
            for start in range(0, len(text), DOCUMENT_CHARS):
                piece = text[start : start + DOCUMENT_CHARS]
                size += len(piece.encode())
                if size > megabytes * 10**6:
                    return
                yield piece
