"""Places in a text as half-open offsets: lines, paragraphs, brackets, marks at line beginnings; joined and cut out."""

import re

_BRACKET = re.compile(r"[\[\]]")

Span = tuple[int, int]


def without(text: str, spans: list[Span]) -> str:
    """The text but for the spans, which are in order and apart."""
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), len(text)]
    return "".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def merged(spans: list[Span]) -> list[Span]:
    """In order, those that overlap or touch as one."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def line_offset(text: str, num_lines: int) -> int:
    """Where the line of that number begins, or the text's length."""
    offset = 0
    for _ in range(num_lines):
        offset = text.find("\n", offset) + 1
        if not offset:
            return len(text)
    return offset


def lines_with(text: str, *words: str) -> list[int]:
    """Where those lines begin that hold one of the words: a plain search passes most text at memory speed."""
    starts = set()
    for word in words:
        offset = text.find(word)
        while offset >= 0:
            starts.add(text.rfind("\n", 0, offset) + 1)
            offset = text.find(word, offset + len(word))
    return sorted(starts)


def marks(text: str, pattern: re.Pattern[str], *words: str) -> list[re.Match[str]]:
    """Matches of the pattern at the beginning of the lines with one of the words."""
    return [match for start in lines_with(text, *words) if (match := pattern.match(text, start))]


def line_end(text: str, offset: int) -> int:
    """Where the line with this offset ends, before its line break."""
    end = text.find("\n", offset)
    return len(text) if end < 0 else end


def paragraph_end(text: str, offset: int) -> int:
    """Where the paragraph with this offset ends, before its line break."""
    end = text.find("\n\n", offset)
    return len(text) if end < 0 else end


def paragraphs(text: str) -> list[Span]:
    """Offsets of the paragraphs of a text whose blank lines are empty and single."""
    spans, start = [], 0
    while start < len(text):
        end = paragraph_end(text, start)
        spans.append((start, end))
        start = end + 2
    return spans


def bracketed(text: str, opening: re.Pattern[str], max_chars: int) -> list[Span]:
    """From an opening bracket to its match; if none is near, to one that ends a line of the paragraph; else nothing."""
    spans, position = [], 0
    while match := opening.search(text, position):
        limit = min(len(text), match.start() + max_chars)
        end = _matching(text, match.start(), limit)
        if end is None:
            stop = text.find("\n\n", match.start(), limit)
            close = text.find("]\n", match.start(), limit if stop < 0 else stop + 1)
            end = close + 1 if close >= 0 else None
        if end is not None:
            spans.append((match.start(), end))
        position = match.end() if end is None else end
    return spans


def _matching(text: str, start: int, limit: int) -> int | None:
    depth = 0
    for bracket in _BRACKET.finditer(text, start, limit):
        depth += 1 if bracket.group() == "[" else -1
        if depth == 0:
            return bracket.end()
    return None


def with_blanks(text: str, spans: list[Span]) -> list[Span]:
    """Also the blanks beside a mark within a line, so that no double blank and no indentation stays behind."""
    widened = []
    for start, end in spans:
        while start and text[start - 1] in " \t":
            start -= 1
        if start == 0 or text[start - 1] == "\n":
            while end < len(text) and text[end] in " \t":
                end += 1
        widened.append((start, end))
    return widened
