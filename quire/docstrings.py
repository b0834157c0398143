"""Documentation strings of installed Python packages as a corpus: a package is an author, a module a book.

Nothing is imported: the source files that a distribution lists are parsed, and the documentation strings of
their modules, classes and functions are cut down to prose: no examples, tables, markup or signatures.
"""

import ast
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
_SKIPPED = frozenset(
    "test tests _test _tests vendor _vendor vendored _vendored extern externals thirdparty third_party "
    "_thirdparty _third_party thirdparty_files _distutils node_modules".split()
)
_TEST_FILE = re.compile(r"^(test_.*|.*_test|conftest)\.py$")

# reStructuredText directives whose content is prose. The content of any other one is code, a table or a list.
_PROSE_DIRECTIVES = frozenset(
    "note warning important tip caution hint attention danger admonition seealso deprecated versionadded "
    "versionchanged versionremoved rubric topic".split()
)
_DIRECTIVE = re.compile(r"\.\. *([\w:-]+?) *::(.*)$")
_COMMENT = re.compile(r"\.\. ?(?!\[)")  # also link targets; footnotes (".. [1] text") are kept as text
_FENCE = re.compile(r"(```|~~~)")
_RULE = re.compile(r"([=\-~^*#+\"'`_.:])\1{2,}$")
_TABLE = re.compile(r"[+|].*[+|]$|={2,}( +={2,})+$|-{2,}( +-{2,})+$")
_BULLET = re.compile(r"([-*+•]|\(?[0-9a-z]{1,2}[.)]|\.\. \[\w+\])\s+")
_FIELD = re.compile(r":(?:param|parameter|arg|raises?|returns?|yields?|keyword|kwarg|var|ivar|cvar)\b[^:]*:\s*")
_TYPE_LINE = re.compile(r":\w+[^:]*:|[`*\w][\w`*., |\[\]\-]* : ")  # ":rtype: int", "axis : int or None"
_ENTRY = re.compile(r"`*\*{0,2}[A-Za-z_][\w.]*`*(\s*\(.*?\))?\s*:(\s+|$)")  # "axis (int): ", "axis: "

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
    """An installed distribution: its name, its version and its sources as (dotted module name, file), sorted."""

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
    """The `max_books` largest books of a package, sorted by title; sizes are in characters of prose.

    A book is a module directly under the package (scipy.stats), with all that lies beneath, if it has at least
    `min_chars`; it ends at the paragraph that would exceed `max_chars`. Of books of the same size, public
    modules go first. A paragraph that differs from an earlier one in the package only by names and numbers,
    as an inherited or templated documentation string does, is dropped.
    Raises UserError for bounds that contradict each other.
    """
    if not 0 < min_chars <= max_chars:
        raise UserError(f"min_chars={min_chars} must be above 0 and at most max_chars={max_chars}")
    if max_books < 1:
        raise UserError(f"max_books={max_books} must be at least 1")
    seen: set[str] = set()
    books = [
        book
        for title, files in sorted(_by_title(package.files).items())
        if len((book := _read_book(package.name, title, files, seen, max_chars)).text) >= min_chars
    ]
    books.sort(key=lambda book: (-len(book.text), "._" in book.title, book.title))
    # Capped books end within a paragraph of max_chars: those ties are broken by public before private.
    books.sort(key=lambda book: (-min(len(book.text), int(0.95 * max_chars)), "._" in book.title))
    return sorted(books[:max_books], key=lambda book: book.title)


def docstrings(source: bytes) -> Iterator[str]:
    """The cleaned (`inspect.cleandoc`) documentation strings of a source file, in source order.

    Raises SyntaxError or ValueError (NUL bytes) for what Python cannot parse.
    """
    if b'"""' not in source and b"'''" not in source:
        return  # a documentation string in single quotes is one line at most: too short to matter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes
        tree = ast.parse(source)
    for node in _documented(tree):
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
            yield text[0].upper() + text[1:]


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _sources(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, Path]]:
    for file in distribution.files or ():
        *folders, name = file.parts
        if not name.endswith(".py") or ".." in folders or _TEST_FILE.match(name):
            continue
        parts = folders if name == "__init__.py" else [*folders, name.removesuffix(".py")]
        if parts and _SKIPPED.isdisjoint(parts) and all(part.isidentifier() for part in parts):
            yield ".".join(parts), Path(distribution.locate_file(file))


def _by_title(files: Iterable[tuple[str, Path]]) -> dict[str, list[tuple[str, Path]]]:
    """Files by book. A package that lies deeper (google.api_core) is split one level below where it begins."""
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


def _read_book(
    author: str, title: str, files: list[tuple[str, Path]], seen: set[str], max_chars: int
) -> Book:
    paragraphs: list[str] = []
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
            if key in seen:
                continue
            num_chars += len(paragraph) + 2
            if num_chars > max_chars:
                return Book(author, title, "\n\n".join(paragraphs), tuple(skipped))
            seen.add(key)
            paragraphs.append(paragraph)
    return Book(author, title, "\n\n".join(paragraphs), tuple(skipped))


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
    """Runs of lines that belong together: split at blank lines, indents, bullets, fields and headings."""
    paragraph: list[str] = []
    indent = 0  # of the paragraph at hand
    hanging = False  # its further lines may be indented, as those of a bullet are
    for line_indent, line in _prose_lines(lines):
        starts = _BULLET.match(line) or _FIELD.match(line) or _ENTRY.match(line)
        if starts and line[starts.end() :][:1] == "" and line_indent <= indent:
            hanging = False
        continues = line_indent == indent or (hanging and line_indent > indent)
        if paragraph and (not line or starts or not continues):
            yield paragraph
            paragraph = []
        if not line or (_TYPE_LINE.match(line) and not _FIELD.match(line)):
            continue
        if not paragraph:
            indent, hanging = line_indent, starts is not None
        paragraph.append(line[starts.end() :] if starts else line)
    if paragraph:
        yield paragraph


def _prose_lines(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(indent, stripped line), where code, tables, directives and headings have become blank lines."""
    indents = [len(line) - len(line.lstrip()) for line in lines]
    stripped = [line.strip() for line in lines]
    literal: int | None = None  # lines indented deeper than this are literal
    fenced = example = False
    for i, line in enumerate(stripped):
        if _FENCE.match(line):
            fenced = not fenced
        if not line:
            example = False
        elif literal is not None and indents[i] <= literal:
            literal = None
        directive = None
        if line.startswith(">>>") or line.startswith("$ ") or line.startswith("In ["):
            example = True
        elif literal is None and (directive := _DIRECTIVE.match(line)):
            if directive[1] not in _PROSE_DIRECTIVES:
                literal = indents[i]
        elif literal is None and _COMMENT.match(line):
            literal = indents[i]
        heads = i + 1 < len(lines) and _RULE.match(stripped[i + 1]) is not None
        if fenced or example or literal is not None or heads or _is_mark(line):
            yield indents[i], ""
        elif directive:
            yield indents[i], ""
        else:
            yield indents[i], line
        if literal is None and line.endswith("::") and not directive:
            literal = indents[i]


def _is_mark(line: str) -> bool:
    return bool(_FENCE.match(line) or _RULE.match(line) or _TABLE.match(line))


def _without_markup(text: str) -> str:
    text = _LINK.sub(lambda match: match[1] or match[2] or "", text)
    text = _FOOTNOTE.sub("", _ROLE.sub("`", text))
    text = _QUOTED.sub(lambda match: match[1] or match[2], text)
    text = _EMPHASIS.sub(r"\2", text).replace("::", ":")
    return " ".join(text.split())
