"""Documentation strings of installed Python packages as a corpus: a package is an author, a module a book.

Nothing is imported: the source files that a distribution lists are parsed, and the documentation strings of
their modules, classes and functions are cut down to prose: no examples, tables, markup or signatures.
"""

import ast
import gc
import importlib.metadata
import inspect
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quire.errors import UserError

# Folders that hold no text of the package itself: its tests, and other people's packages that it carries.
_TESTS = frozenset({"test", "tests", "_test", "_tests"})
_VENDORED = re.compile(r"_?(vendor|vendored|extern|externals|third_?party|thirdparty_files|_distutils)")
_TEST_FILE = re.compile(r"^(test_.*|.*_test|conftest)\.py$")

# reStructuredText directives whose content is prose. The content of any other one is code, a table or a list.
_PROSE_DIRECTIVES = re.compile(
    r"note|warning|important|tip|caution|hint|attention|danger|admonition|seealso|topic"
    r"|deprecated|version(?:added|changed|removed)"
)
_DIRECTIVE = re.compile(r"\.\. *([\w:-]+?) *::(.*)$")
_COMMENT = re.compile(r"\.\. ?(?!\[)")  # also link targets; footnotes (".. [1] text") are kept as text
_FENCE = re.compile(r"(```|~~~)")
_RULE = re.compile(r"([=\-~^*#+\"'`_.:])\1{2,}$")
_TABLE = re.compile(r"[+|].*[+|]$|={2,}( +={2,})+$|-{2,}( +-{2,})+$")
_BULLET = re.compile(r"([-*+•]|\(?(?:[0-9]{1,2}|[a-z])[.)]|\.\. \[\w+\])\s+")
_FIELD = re.compile(r":(?:param(?:eter)?|k?w?arg|keyword|raises?|returns?|yields?|[ci]?var)\b[^:]*:\s*")
_TYPE_LINE = re.compile(r":\w[^:`]*:(?!`)|[`*\w][\w`*., |\[\]\-]* : ")  # ":rtype: int", "axis : int or None"
_ENTRY = re.compile(r"`*\*{0,2}[A-Za-z_][\w.]*`*(\s*\(.*?\))?:(\s+|$)")  # "axis (int): ", "axis: "

_ROLE = re.compile(r":[a-zA-Z][\w:+.-]*:`")
_LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{0,2}|\[([^\]]+)\]\([^)\s]*\)")
_FOOTNOTE = re.compile(r"\s*\[[\w#*]+\]_\b")
_QUOTED = re.compile(r"``([^`]+)``|`~?([^`]+)`_{0,2}")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(\S(?:[^*\n]*\S)?)\1(?![\w*])")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
_PLAIN_WORD = re.compile(r"[\"'(]*[A-Za-z][a-z]*(?:['’-][A-Za-z]+)*[\"')]*[.,;:!?]*[\"')]*$")
_LOWER_WORD = re.compile(r"\b[a-z]+\b")


@dataclass(frozen=True)
class Package:
    """An installed distribution: name, version and its sources as sorted (dotted module name, file)."""

    name: str
    version: str
    files: tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class Book:
    """The prose of one module and all beneath it.

    author: the distribution's name. title: the dotted module name. text: paragraphs, one a line, with a blank
    line between. skipped: "module: reason" for each source that this Python cannot parse.
    """

    author: str
    title: str
    text: str
    skipped: tuple[str, ...] = ()


def list_packages(names: tuple[str, ...] | None = None) -> list[Package]:
    """The installed distributions that have Python sources, sorted by name; `names` chooses among them.

    A name is compared as PEP 503 says (case and "-_." do not matter). Raises UserError for a name that is not
    installed or that has no Python sources, such as an editable install.
    """
    wanted = None if names is None else {_normalized(name): name for name in names}
    found: dict[str, Package] = {}
    for distribution in importlib.metadata.distributions():
        key = _normalized(distribution.name)
        if key in found or (wanted is not None and key not in wanted):
            continue  # the first on sys.path is the one that Python would import
        files = tuple(sorted(_sources(distribution)))
        if files:
            found[key] = Package(distribution.name, distribution.version, files)
    for key, name in (wanted or {}).items():
        if key not in found:
            raise UserError(f"package {name!r} has no Python sources here: install it, or leave its name out")
    return [found[key] for key in sorted(found)]


def read_books(
    package: Package, *, min_chars: int = 12_000, max_books: int = 8, max_chars: int = 120_000
) -> list[Book]:
    """At most `max_books` books of a package, sorted by title; sizes are in characters of prose.

    A book is a module directly under the package (scipy.stats), with all that lies beneath, if it has at
    least `min_chars`; it ends before the paragraph that would exceed `max_chars`. The modules with the most
    documentation are taken first, private ones after all public ones. A paragraph that differs from an
    earlier one of the package by names and numbers only, as an inherited or templated one does, is dropped.
    Raises UserError for bounds that contradict each other.
    """
    if not 0 < min_chars <= max_chars:
        raise UserError(f"min_chars={min_chars} must be above 0 and at most max_chars={max_chars}")
    if max_books < 1:
        raise UserError(f"max_books={max_books} must be at least 1")
    titles = _by_title(package.files)
    sizes = {title: sum(_documented_size(path) for _, path in files) for title, files in titles.items()}
    seen: set[str] = set()
    books: list[Book] = []
    for title in sorted(titles, key=lambda title: (_is_private(title), -sizes[title], title)):
        if sizes[title] < min_chars or len(books) == max_books:  # most modules need no parsing
            continue
        book, keys = _read_book(package.name, title, titles[title], seen, max_chars)
        if len(book.text) >= min_chars:
            books.append(book)
            seen |= keys
    return sorted(books, key=lambda book: book.title)


def docstrings(source: bytes) -> Iterator[str]:
    """The cleaned (`inspect.cleandoc`) documentation strings of a source file, in source order.

    Raises SyntaxError or ValueError (NUL bytes) for what Python cannot parse.
    """
    if b'"""' not in source and b"'''" not in source:
        return  # a documentation string in single quotes is one line at most: too short to matter
    for node in _documented(_parse(source)):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield inspect.cleandoc(text)


def prose(docstring: str) -> Iterator[str]:
    """The paragraphs of prose in a cleaned documentation string, each on one line, without markup.

    A paragraph has at least six words, most of its words are plain ones, and it ends with a whole sentence.
    """
    for lines in _paragraphs(docstring.split("\n")):
        text = _without_markup(" ".join(lines))
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        text = text[: ends[-1]] if ends else ""  # "For example:" and what else never became a sentence
        words = text.split()
        num_plain = sum(_PLAIN_WORD.match(word) is not None for word in words)
        if num_plain >= 6 and num_plain >= 0.75 * len(words) and text[0].isalpha():
            yield text


def _parse(source: bytes) -> ast.Module:
    """`ast.parse` without warnings (of other people's invalid escapes) and, being a third faster so, without
    the garbage collector: a syntax tree has no cycles."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    finally:
        if collecting:
            gc.enable()


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _sources(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, Path]]:
    for file in distribution.files or ():
        *folders, name = file.parts
        if not name.endswith(".py") or ".." in folders or _TEST_FILE.match(name):
            continue
        parts = folders if name == "__init__.py" else [*folders, name.removesuffix(".py")]
        foreign = any(part in _TESTS or _VENDORED.fullmatch(part) for part in parts)
        if parts and not foreign and all(part.isidentifier() for part in parts):
            yield ".".join(parts), Path(distribution.locate_file(file))


def _by_title(files: Iterable[tuple[str, Path]]) -> dict[str, list[tuple[str, Path]]]:
    """Files by book; a package that lies deeper (google.api_core) is split where it first branches."""
    roots: dict[str, list[tuple[list[str], Path]]] = defaultdict(list)
    for module, path in files:
        parts = module.split(".")
        roots[parts[0]].append((parts, path))
    books = defaultdict(list)
    for members in roots.values():
        packages = [parts if path.name == "__init__.py" else parts[:-1] for parts, path in members]
        first, last = min(packages), max(packages)  # the common beginning of all is that of these two
        depth = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        for parts, path in members:
            books[".".join(parts[: depth + 1])].append((".".join(parts), path))
    return books


def _documented_size(path: Path) -> int:
    """Bytes in triple quotes: about the size of the documentation strings, without parsing."""
    source = path.read_bytes()
    return sum(len(text) for quote in (b'"""', b"'''") for text in source.split(quote)[1::2])


def _is_private(title: str) -> bool:
    return title.startswith("_") or "._" in title


def _read_book(
    author: str, title: str, files: list[tuple[str, Path]], seen: set[str], max_chars: int
) -> tuple[Book, set[str]]:
    """The book, and the keys of its paragraphs, which have none of `seen`."""
    paragraphs: dict[str, str] = {}
    skipped: list[str] = []
    num_chars = -2  # the first paragraph has no blank line before it
    for module, path in files:
        try:
            texts = list(docstrings(path.read_bytes()))
        except (SyntaxError, ValueError) as error:  # newer syntax, or a template
            skipped.append(f"{module}: {error}")
            continue
        for paragraph in (paragraph for text in texts for paragraph in prose(text)):
            key = " ".join(_LOWER_WORD.findall(paragraph))
            if key in seen or key in paragraphs:
                continue
            num_chars += len(paragraph) + 2
            if num_chars > max_chars:
                return Book(author, title, "\n\n".join(paragraphs.values()), tuple(skipped)), set(paragraphs)
            paragraphs[key] = paragraph
    return Book(author, title, "\n\n".join(paragraphs.values()), tuple(skipped)), set(paragraphs)


def _documented(node: ast.AST) -> Iterator[ast.AST]:
    """Modules, classes and functions from `node` on, in source order; expressions are not searched."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        children = getattr(node, name, ())
        if isinstance(children, list):  # the body of a lambda or a conditional expression is not
            for child in children:
                yield from _documented(child)


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that belong together: split at blank lines, indents, bullets and fields."""
    paragraph: list[str] = []
    indent = 0  # of the paragraph's first line
    hanging = False  # its further lines may be deeper, as those of a bullet are
    for line_indent, line in _prose_lines(lines):
        continues = line_indent == indent or (hanging and line_indent > indent)
        # A wrapped line may look like an entry ("modes: fast"): it is one only where no line can wrap to.
        wraps = any(paragraph) and (line_indent > indent if hanging else line_indent == indent)
        item, rest = _without_item(line, entries=not wraps)
        if paragraph and (not line or item or not continues):
            yield paragraph
            paragraph = []
        if not line or (not item and _TYPE_LINE.match(line)):
            continue
        if not paragraph:
            indent, hanging = line_indent, item
        paragraph.append(rest)
    if paragraph:
        yield paragraph


def _without_item(line: str, entries: bool) -> tuple[bool, str]:
    """Whether a line begins an item of a list, a field or (if `entries`) an entry; what follows its mark."""
    bullet = _BULLET.match(line)
    rest = line[bullet.end() :] if bullet else line
    name = _FIELD.match(rest) or ((entries or bullet) and _ENTRY.match(rest))
    return bool(bullet or name), rest[name.end() :] if name else rest


def _prose_lines(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(indent, stripped line), where code, tables, directives and headings have become blank lines."""
    indents = [len(line) - len(line.lstrip()) for line in lines]
    stripped = [line.strip() for line in lines]
    literal: int | None = None  # lines indented deeper than this are literal
    fenced = block = False  # between fences; in an example or a table, which ends at a blank line
    for i, line in enumerate(stripped):
        following = stripped[i + 1] if i + 1 < len(lines) else ""
        if not line:
            block = False
        elif literal is not None and indents[i] <= literal:
            literal = None
        fenced ^= _FENCE.match(line) is not None
        block |= line.startswith((">>>", "$ ", "In [")) or _TABLE.match(line) is not None
        heading = _RULE.match(line) or _RULE.match(following)
        if fenced or block or literal is not None or heading or _FENCE.match(line):
            yield indents[i], ""
        elif directive := _DIRECTIVE.match(line):
            yield indents[i], ""
            if _PROSE_DIRECTIVES.fullmatch(directive[1]):
                yield (indents[i + 1] if following else indents[i]), directive[2].strip()
            else:
                literal = indents[i]
        else:
            yield indents[i], "" if _COMMENT.match(line) else line
            if line.endswith("::") or _COMMENT.match(line):
                literal = indents[i]


def _without_markup(text: str) -> str:
    text = _LINK.sub(lambda match: match[1] or match[2] or "", text)
    text = _FOOTNOTE.sub("", _ROLE.sub("`", text))
    text = _QUOTED.sub(lambda match: match[1] or match[2], text)
    text = _EMPHASIS.sub(r"\2", text).replace("::", ":")
    return " ".join(text.split())
