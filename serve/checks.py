"""What a request may be: its shape, its limits, and a refusal that names the field."""

import json
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quire.decisions import CODES


class Pair(BaseModel):
    """Two texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    a: str = Field(min_length=1, description="one text: a passage, a chapter, a book")
    b: str = Field(min_length=1, description="the other")


class Pairs(BaseModel):
    """Several pairs, answered in their order."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pairs: list[Pair] = Field(min_length=1)


class Result(BaseModel):
    """The answer for one pair."""

    decision: Literal["same", "different", "undecided"] = Field(
        description="undecided: where a precision was asked for, and the probability lies between the two certified "
        "thresholds or on a side without one"
    )
    code: Literal["cannot_certify", "not_calibrated"] | None = Field(
        description="why it is undecided. " + "; ".join(f"{code}: {text}" for code, text in CODES.items())
    )
    same_book: bool | None = Field(description="the decision as a boolean; null when undecided")
    probability: float = Field(description="calibrated, at the prior; the final stage's")
    stage: str = Field(description="bi-encoder or cross-encoder: whose answer is final")
    bi_probability: float = Field(description="of the bi-encoder alone, calibrated, at the prior")
    cross_probability: float | None = Field(
        description="of both stages together: the cross-encoder's logit and the bi-encoder's, weighed as calibrated; "
        "null when the first stage was enough"
    )
    threshold: float | None = Field(
        description="without certificates, same_book is probability >= threshold; null with them"
    )
    same_threshold: float | None = Field(description="certified: same from this probability on; null: never")
    different_threshold: float | None = Field(description="certified: different up to this probability; null: never")
    prior: float = Field(description="share of same-book pairs that the probabilities are for")
    model: str = Field(description="fingerprint of the matcher")
    num_passages_a: int = Field(description="that the text has")
    num_passages_b: int
    k: int = Field(description="passages that were read of either text, evenly spaced; the level that answers")
    calibrated: bool = Field(
        description="whether both texts have a whole passage, as all those that the scales were fitted on"
    )


class Results(BaseModel):
    """The answers for a list, in its order."""

    model: str
    results: list[Result]


class RequestError(Exception):
    """A request that cannot be answered: status, the field, and what is wrong with it."""

    def __init__(self, status: int, field: str, message: str):
        super().__init__(message)
        self.status, self.field, self.message = status, field, message


class Admission:
    """Lets so many requests in at once, and refuses the others instead of letting them wait for minutes."""

    def __init__(self, limit: int):
        self.limit, self.inside = limit, 0

    def __enter__(self) -> None:
        if self.inside >= self.limit:
            raise RequestError(503, "body", f"max_requests = {self.limit} are in work; ask again later")
        self.inside += 1

    def __exit__(self, *exception: object) -> None:
        self.inside -= 1


def check_cost(field: str, what: str, count: int, limit: int) -> None:
    """Raises RequestError for a request that would occupy the models for too long."""
    if count > limit:
        raise RequestError(413, field, f"{count} {what.replace('_', ' ')} in all; at most max_{what} = {limit}")


async def read_body(request: Request, limit: int) -> bytes:
    """The body, read no further than the limit, whatever the headers say."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise RequestError(413, "body", f"larger than max_body_bytes = {limit}")
    return bytes(body)


def parse(body: bytes) -> dict[str, Any]:
    """The body as a JSON object."""
    try:
        value = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(400, "body", f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from error
    except (ValueError, RecursionError) as error:  # ValueError alone: a number of more digits than Python reads
        raise RequestError(400, "body", f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(422, "body", 'expected an object with "a" and "b", or with "pairs"')
    return value


def validate(body: dict[str, Any], single: bool, max_pairs: int, max_chars: int) -> list[Pair]:
    """The pairs of a request. Raises RequestError naming the field and the limit."""
    listed = body.get("pairs")
    if isinstance(listed, list) and len(listed) > max_pairs:
        raise RequestError(413, "pairs", f"{len(listed)} pairs; at most max_pairs = {max_pairs}")
    check_keys("", body)
    for index, item in enumerate(listed if isinstance(listed, list) else ()):
        check_keys(f"pairs.{index}.", item)
    try:
        pairs = [Pair.model_validate(body)] if single else Pairs.model_validate(body).pairs
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RequestError(422, ".".join(str(part) for part in first["loc"]) or "body", first["msg"]) from error
    for index, pair in enumerate(pairs):
        for side in ("a", "b"):
            field = side if single else f"pairs.{index}.{side}"
            check_text(field, getattr(pair, side), max_chars)
    return pairs


def check_keys(prefix: str, value: Any) -> None:
    """Raises RequestError for a key with a lone surrogate, which pydantic refuses without naming it."""
    for key in value if isinstance(value, dict) else ():
        if not _is_unicode(key):
            field = prefix + key.encode("utf-8", "backslashreplace").decode()
            raise RequestError(422, field, "a lone surrogate in the key; expected valid Unicode")


def check_text(field: str, text: str, max_chars: int) -> None:
    """Raises RequestError for a text that no model can read."""
    if len(text) > max_chars:
        raise RequestError(413, field, f"{len(text)} characters; at most max_chars = {max_chars}")
    if not text.strip():
        raise RequestError(422, field, "blank; expected some text")
    if not _is_unicode(text):
        raise RequestError(422, field, "a lone surrogate; expected valid Unicode")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()  # refuses lone surrogates, at the speed of C
    except UnicodeEncodeError:
        return False
    return True
