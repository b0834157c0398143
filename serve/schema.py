"""What the OpenAPI page says beyond the types of the answers."""

from dataclasses import asdict

from pydantic import BaseModel, Field

from quire.certify import Certificate
from quire.matcher import MatcherSpec, rule
from serve.checks import Pair

DESCRIPTION = (
    "Do two texts come from the same book? Texts longer than a passage, up to whole books, are cut into passages as "
    "the training data was. A matcher is calibrated for some numbers k of passages a side, its levels; two texts are "
    "answered at the largest k for which both have passages, of which k evenly spaced ones of each are read: all k x k "
    "pairs of passages by the bi-encoder, beside those within each text, and those that tell the most by the cross-"
    "encoder. `k` says how many were read. "
    "The probability for a text shorter than a passage ranks and is not calibrated: `calibrated` is false.\n\n"
    "A matcher may be calibrated with a precision for the decision `same`, for `different`, or both. Each is then "
    "certified by exact binomial bounds on independent pairs that nothing was fitted on: over calibration sets, the "
    "precision among all such decisions is at least the one asked for, with the stated confidence, for each side by "
    "itself. Any other pair is `undecided`. `GET /v1/matcher` shows the certificates of every level. At another "
    "`prior` than theirs the cuts on the scores stay; `same` stays certified at higher priors, `different` at lower "
    "ones, and the other way a side answers `undecided` with the code `cannot_certify`. All this holds where same-"
    "book pairs, and different-book pairs, look as they did in the calibration."
)
REFUSALS = {
    400: "Not JSON, or not UTF-8",
    413: "Too large: the body, a text, the list, or the passages of all texts",
    422: "A field is wrong",
    503: "Too many requests at once; ask again",
    504: "Not answered in time",
}


class CalibratedLevel(BaseModel):
    """What an answer from k passages a side rests on."""

    k: int = Field(description="passages that are read of either text")
    num_calibration_pairs: int = Field(
        description="that the scales and thresholds were fitted on, of texts read at k passages each"
    )
    calibration_prior: float = Field(description="share of same-book pairs among them")
    same_threshold: float | None = Field(description="same from this probability on; null: never")
    different_threshold: float | None = Field(description="different up to this probability; null: never")
    certificates: list[Certificate] = Field(description="of each precision that was asked for, held or not")


class Matcher(BaseModel):
    """What answers: what its calibration rests on, and what it certifies."""

    model: str = Field(description="fingerprint of all the rest")
    bi_encoder_sha256: str
    cross_encoder_sha256: str
    data_sha256: str = Field(description="of the calibration pairs with their labels and logits")
    prior: float = Field(description="share of same-book pairs that the answers are for")
    max_cross_pairs: int = Field(description="pairs of passages that the cross-encoder reads of two texts")
    levels: list[CalibratedLevel] = Field(description="by rising k")

    @classmethod
    def of(cls, spec: MatcherSpec, prior: float | None) -> "Matcher":
        """Of a spec as it is used at one prior (default: its own)."""
        values = {key: value for key, value in asdict(spec).items() if key in cls.model_fields}
        made = []
        for level in spec.levels:
            used = rule(spec, prior, level.k)
            limits = {f"{side}_threshold": used.limit(side) for side in ("same", "different")}
            known = {key: value for key, value in asdict(level).items() if key in CalibratedLevel.model_fields}
            made.append(CalibratedLevel(**known | limits))
        return cls(**values | {"levels": made, "model": spec.fingerprint, "prior": rule(spec, prior).prior})


_PAIR = Pair.model_json_schema()
_PAIRS = {
    "type": "object",
    "required": ["pairs"],
    "additionalProperties": False,
    "properties": {"pairs": {"type": "array", "items": _PAIR, "minItems": 1}},
}
OPENAPI = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": [_PAIR, _PAIRS]}}}},
    "responses": {str(code): {"description": text} for code, text in REFUSALS.items()},
}
