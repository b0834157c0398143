"""Names that may be one person's: "A. Conan Doyle" and "Arthur Conan Doyle".

A doubtful case joins: two authors in one split cost a little independence, one author in two splits the whole test.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations


def couples(authors: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Two and two of the authors (slugs, as `names.slug` makes them) who may be one person."""
    # Alike names begin alike, and a hundred thousand authors of papers have thousands of Wangs among them.
    by_surname: dict[tuple[str, str], list[list[str]]] = {}
    for words in sorted({author: author.split("_") for author in authors}.values()):
        if len(words) > 1 and words[-1].isalpha() and len(words[-1]) > 1:  # "agent_53" is known to be somebody
            by_surname.setdefault((words[-1], words[0][0]), []).append(words)
    for namesakes in by_surname.values():
        for a, b in combinations(namesakes, 2):
            if _alike(a[:-1], b[:-1]):
                yield "_".join(a), "_".join(b)


def _alike(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether the given names of one, initials or whole, stand in the other's, in order and from the first on."""
    short, long = sorted((a, b), key=len)
    if not _one_name(short[0], long[0]):
        return False
    rest = iter(long[1:])
    return all(any(_one_name(name, other) for other in rest) for name in short[1:])


def _one_name(a: str, b: str) -> bool:
    return a == b or (min(len(a), len(b)) == 1 and a[0] == b[0])
