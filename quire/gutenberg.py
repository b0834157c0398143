"""Project Gutenberg files: the header apart, and the book alone, every removed character accounted for.

`clean` only deletes, each rule within a bound of its own, and repeats its rules until none applies: so it is
idempotent, a stray mark costs no more than its rule's bound, and an unclosed bracket costs nothing.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from quire import places
from quire.places import Span

MAX_HEADER_LINES = 1_000  # the old header with its "small print" takes about 400
MAX_FOOTER_CHARS = 30_000  # the licence has 19,000; a longer rest after an END line is another volume
_MAX_FOOTER_GAP = 2_000  # without a word of the licence; the longest gap in the licences of 65 books has 869
_MAX_HEADER_CHARS = 80_000  # of that many lines
_MAX_NOTE_CHARS = 3_000
_MAX_CAPTION_CHARS = 1_000
_MAX_CREDIT_CHARS = 800
_MAX_LICENCE_CHARS = 3_000  # of one paragraph
_NUM_CREDIT_PARAGRAPHS = 12  # credits stand among the first paragraphs, or are none

# Patterns for the beginning of a line; the words are what a plain search for such lines may look for.
EBOOK = r"E-?\s?(?:BOOK|TEXT)"
_OF_EBOOK = rf"[ \t]+OF[ \t]+(?:THIS|THE)[ \t]+PROJECT[ \t]+GUTENBERG[ \t]+{EBOOK}"
_START = re.compile(rf"[ \t]*\*{{2,}}[ \t]*START{_OF_EBOOK}", re.I)
_END = re.compile(rf"[ \t]*\*{{2,}}[ \t]*END{_OF_EBOOK}", re.I)
_END_WORDS = re.compile(r"[ \t]*End of (?:the |this )?Project Gutenberg", re.I)
_SMALL_PRINT_START = re.compile(r"[ \t]*\*+[ \t]*START[ \t*]*THE SMALL PRINT", re.I)
_SMALL_PRINT_END = re.compile(r"[ \t]*\*+[ \t]*END[ \t*]*THE SMALL PRINT", re.I)
_LICENCE_TITLE = re.compile(r".*(?:START: FULL LICENSE|THE FULL PROJECT GUTENBERG LICENSE)", re.I)
_GUTENBERG = ("utenberg", "UTENBERG")
_LICENCE_WORDS = (*_GUTENBERG, "PLEASE READ", "trademark", "should be named", "Updated editions", "for the use of")
_SMALL_PRINT = ("SMALL PRINT", "Small Print", "small print")
_TRANSCRIBER_WORDS = ("ranscriber", "RANSCRIBER", "Gutenberg Editor")
_FOOTER_WORD = re.compile(r"gutenberg|trademark|electronic work|donat|copyright|damages|warrant|e-?book", re.I)
_HINT = re.compile(r"Project Gutenberg", re.I)
# Paragraphs of a header that lost its START line.
_HEADER_PARAGRAPH = re.compile(
    r"""\s*(?:\*+\s*)?(?:
      (?:The\ |A\ |Welcome\ to\ the\ )?Project\ Gutenberg | This\ (?:e-?book|e-?text)\ is\ for\ the\ use
    | Copyright\ laws\ are\ changing | \[(?:e-?book|e-?text)\ \# | Most\ recently\ updated:
    | \[(?:This|Last|Most|Date|The\ actual)[^\]\n]*\]\s*$
    | (?:Title|Author|Editor|Illustrator|Translator|Release\ Date|Posting\ Date|Last\ Updated|First\ Posted
      |Language|Character\ set\ encoding|Credits|Original\ publication): )""",
    re.I | re.X,
)
_LICENCE = re.compile(
    r"""Project\s+Gutenberg(?:-tm|\(tm\)|™|\s+Literary\s+Archive|\s+License|\s+Web\ pages?)
    | THE\ FULL\ PROJECT\ GUTENBERG | PLEASE\ READ\ THIS\ BEFORE\ YOU\ DISTRIBUTE | START:\ FULL\ LICENSE
    | This\s+(?:e-?book|e-?text)\s+is\s+for\s+the\s+use\s+of\s+anyone\s+anywhere
    | Updated\s+editions\s+will\s+replace\s+the\s+previous
    | subject\s+to\s+the\s+trademark\s+license,?\s+especially\s+commercial
    | ^[\ *]*This\ file\ should\ be\ named\ \S+""",
    re.I | re.X | re.M,
)
_CREDIT = re.compile(
    r"""\s*(?: (?:This\ )?(?:Project\ Gutenberg\ )?(?:(?:e-?book|e-?text)\ )?(?:was\ )?
        (?:produced|prepared|transcribed|scanned|digiti[sz]ed|proofread)\ (?:and\ \w+\ )?(?:by|from)\b
    | Note:\ (?:Project\ Gutenberg\ also\ has|Images\ of\ the\ original) | Note\ from\ the\ original\ file: )""",
    re.I | re.X,
)
_TRANSCRIBER = r"(?:Transcribers?['’`]?s?['’`]?|Project[ ]Gutenberg[ ]Editor['’]s)"
_NOTE_OPEN = re.compile(rf"\[[*_\s]*(?:{_TRANSCRIBER}\b|TN:)", re.I)
_NOTE_HEADING = re.compile(rf"[ \t*_=]*{_TRANSCRIBER}[ \t]+notes?\b[:.]?", re.I)
_NOTE_BOX = re.compile(r"^[ \t]*\+[-=+]{3,}\+?\n(?:[ \t]*\|[^\n]*\n)+[ \t]*\+[-=+]{3,}\+?$", re.M)
_NOTE_WORDS = re.compile(
    r"\b(?:spelling|hyphen|punctuation|typograph|printer|misprint|inconsisten|obvious|correct|transcri|retained"
    r"|original|error|italic|footnote|ligature|e-?text|e-?book)",
    re.I,
)
_CAPTION_OPEN = re.compile(r"\[\s*_?(?:Illustrations?\b|(?:Picture|Frontispiece):)", re.I)


@dataclass(frozen=True)
class Cleaned:
    """The book, and how many characters each rule removed; together they are the input's length."""

    text: str
    removed: dict[str, int]


def header_of(text: str) -> str:
    """The Project Gutenberg header of a file, blank runs dropped, or "" when it has none: no line of the book.

    It is what precedes the START line or, in old files, the end of the small print; where both are missing, the
    paragraphs that only a header has.
    """
    text = _drop_blanks(text[:_MAX_HEADER_CHARS], dict.fromkeys(_RULE_NAMES, 0))
    spans = _header(text)
    if not spans or not _HINT.search(text, 0, spans[0][1]):
        return ""
    header = text[: spans[0][1]]
    starts = places.marks(header, _START, *_GUTENBERG)
    return header[: starts[0].start()] if starts else header


def has_start(text: str) -> bool:
    """Whether a line says that the book starts: then another one says where it ends, unless the file was cut."""
    return bool(places.marks(text, _START, *_GUTENBERG))


def has_end(text: str) -> bool:
    """Whether a line says that the book ends."""
    return any(places.marks(text, pattern, *_GUTENBERG) for pattern in (_END, _END_WORDS))


def clean(text: str) -> Cleaned:
    """A book without Project Gutenberg's header, footer, licence, credits, notes and illustration marks.

    Lines and paragraphs stay: line ends become LF, runs of blank lines one blank line, blanks at line ends go.
    Idempotent. The caller judges the kept share: no rule knows how long the book should be.
    """
    removed = dict.fromkeys(_RULE_NAMES, 0)
    text = _drop_blanks(text, removed)
    length = -1
    while length != len(text):  # every rule only deletes, so this ends
        length = len(text)
        for rule, find in _RULES:
            spans = places.merged(find(text))
            if spans:
                removed[rule] += sum(end - start for start, end in spans)
                text = _drop_blanks(places.without(text, spans), removed)
    return Cleaned(text, removed)


def _drop_blanks(text: str, removed: dict[str, int]) -> str:
    kept = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = "\n".join(map(str.rstrip, kept.split("\n"))).strip("\n")
    while "\n\n\n" in kept:  # each turn takes a third of every run; a regular expression is ten times slower
        kept = kept.replace("\n\n\n", "\n\n")
    removed["blank"] += len(text) - len(kept)
    return kept


def _marker_end(text: str, match: re.Match[str]) -> int:
    """The end of a START or END marker: its title may wrap, up to the line with the closing stars."""
    first = end = places.line_end(text, match.end())
    for _ in range(4):
        line_start = text.rfind("\n", 0, end) + 1
        line = text[max(line_start, match.end()) : end]
        if line.rstrip().endswith("**"):
            return end
        if end == len(text) or text[end + 1 : end + 2] in ("\n", ""):
            return first
        end = places.line_end(text, end + 1)
    return first


def _header(text: str) -> list[Span]:
    limit = places.line_offset(text, MAX_HEADER_LINES)
    top = text[:limit]
    end = 0
    if starts := places.marks(top, _START, *_GUTENBERG):
        end = _marker_end(text, starts[0])
    small = [mark for mark in places.marks(top, _SMALL_PRINT_END, *_SMALL_PRINT) if mark.start() >= end]
    if small and _small_print_is_header(top, small[0]):
        end = places.line_end(text, small[0].end())
    if not end and _HINT.search(top, 0, min(places.paragraph_end(top, 0), _MAX_LICENCE_CHARS)):
        for start, stop in places.paragraphs(top):
            if not _HEADER_PARAGRAPH.match(text, start) or stop - start > _MAX_LICENCE_CHARS:
                break
            end = stop
    return [(0, end)] if end else []


def _small_print_is_header(top: str, small: re.Match[str]) -> bool:
    """The small print opened the files of the nineties; in a few it closes them, and the book stands above it."""
    begins = places.marks(top[: small.start()], _SMALL_PRINT_START, *_SMALL_PRINT)
    near = not begins or begins[0].start() < places.line_offset(top, 200)
    return near and _HINT.search(top, 0, small.start()) is not None


def _footer(text: str) -> list[Span]:
    """From an END line to the end, where a licence follows; between the volumes of a collection the line alone."""
    for pattern in (_END, _END_WORDS):
        if marks := places.marks(text, pattern, *_GUTENBERG):
            ends = (len(text) if _licence_follows(text, mark.end()) else _marker_end(text, mark) for mark in marks)
            return [(mark.start(), end) for mark, end in zip(marks, ends, strict=True)]
    return []


def _licence_follows(text: str, offset: int) -> bool:
    if len(text) - offset > MAX_FOOTER_CHARS:
        return False
    words = [word.start() for word in _FOOTER_WORD.finditer(text, offset)]
    return all(end - start <= _MAX_FOOTER_GAP for start, end in pairwise([offset, *words, len(text)]))


def _licence(text: str) -> list[Span]:
    """Paragraphs with words of the licence, and the small print or full licence from its title to its end."""
    spans = _licence_paragraphs(text)
    spans += [(mark.start(), _marker_end(text, mark)) for mark in places.marks(text, _START, *_GUTENBERG)]
    for begin in places.marks(text, _SMALL_PRINT_START, *_SMALL_PRINT):
        block = text[begin.start() : begin.start() + MAX_FOOTER_CHARS]
        if ends := places.marks(block, _SMALL_PRINT_END, *_SMALL_PRINT):
            spans.append((begin.start(), begin.start() + places.line_end(block, ends[0].end())))
    return spans


def _licence_paragraphs(text: str) -> list[Span]:
    marked = set()
    for line in places.lines_with(text, *_LICENCE_WORDS):
        start = text.rfind("\n\n", 0, line)
        start = 0 if start < 0 else start + 2
        end = places.paragraph_end(text, line)
        if end - start <= _MAX_LICENCE_CHARS and _LICENCE.search(text, start, end):
            marked.add((start, end))
    spans = list(marked)
    for title in places.marks(text, _LICENCE_TITLE, "FULL"):
        ends = [end for _, end in marked if 0 <= end - title.start() <= MAX_FOOTER_CHARS]
        if ends:
            spans.append((title.start(), max(ends)))
    return spans


def _credits(text: str) -> list[Span]:
    """Paragraphs such as "Produced by" near the top; of one that is too long to be a credit, the first line."""
    spans = []
    top = places.line_offset(text, 200)
    for start, end in places.paragraphs(text[:top])[:_NUM_CREDIT_PARAGRAPHS]:
        if _CREDIT.match(text, start):
            whole = end < top or top == len(text)
            stop = end if whole and end - start <= _MAX_CREDIT_CHARS else places.line_end(text, start)
            if stop - start <= _MAX_CREDIT_CHARS:
                spans.append((start, stop))
    return spans


def _illustrations(text: str) -> list[Span]:
    return places.with_blanks(text, places.bracketed(text, _CAPTION_OPEN, _MAX_CAPTION_CHARS))


def _transcriber_notes(text: str) -> list[Span]:
    lines = places.lines_with(text, *_TRANSCRIBER_WORDS)
    if not lines:
        return []
    spans = places.with_blanks(text, places.bracketed(text, _NOTE_OPEN, _MAX_NOTE_CHARS))
    spans += [box.span() for box in _NOTE_BOX.finditer(text) if re.search(_TRANSCRIBER, box.group(), re.I)]
    blocks = places.paragraphs(text)
    index_at = {start: index for index, (start, _) in enumerate(blocks)}
    for line in lines:
        if line in index_at and (heading := _NOTE_HEADING.match(text, line)):
            spans.append((line, _note_end(text, blocks, index_at[line], heading.end())))
    return spans


def _note_end(text: str, blocks: list[Span], index: int, heading_end: int) -> int:
    """A note under a heading: its paragraph, and those after it that speak of spelling, hyphens and the like."""
    start, end = blocks[index]
    bare = not text[heading_end:end].strip(" *_=:.\n")
    if end - start > _MAX_NOTE_CHARS:
        return places.line_end(text, start)
    for later_start, later_end in blocks[index + 1 :]:
        if later_end - start > _MAX_NOTE_CHARS:
            break
        words = {word.lower() for word in _NOTE_WORDS.findall(text, later_start, later_end)}
        if not bare and len(words) < 2:  # one alone, say "obvious", stands in any novel
            break
        bare, end = False, later_end
    return end


_RULES: list[tuple[str, Callable[[str], list[Span]]]] = [
    ("header", _header),
    ("footer", _footer),
    ("licence", _licence),
    ("credits", _credits),
    ("transcriber_note", _transcriber_notes),
    ("illustration", _illustrations),
]
_RULE_NAMES = [*(rule for rule, _ in _RULES), "blank"]
