"""The two-stage decision: the bi-encoder answers what it can refuse, the cross-encoder the rest, on one scale.

The same code evaluates offline and answers over HTTP. Shape letters: n pairs, k passages that are read of either text.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quire import chunks, decisions, hub, levels
from quire.bi_encoder import BiEncoder
from quire.calibration import NONE_PASSES, Fusion, Scale
from quire.cross_encoder import CrossEncoder
from quire.errors import UserError
from quire.levels import Level, Question
from quire.storage import Storage, made_once


@dataclass(frozen=True)
class MatcherSpec:
    """All that turns two models into decisions; stored as matcher.json. Folders are relative to the artefact root.

    The answers are for pairs of which `prior` are of the same book, on whose scale the thresholds and the certificates
    of all levels stand.
    """

    bi_encoder: str
    cross_encoder: str
    bi_encoder_sha256: str
    cross_encoder_sha256: str
    levels: tuple[Level, ...]  # rising, from one passage a side
    objective: str
    size: int
    overlap: int
    min_chars: int
    max_cross_pairs: int  # cells that the cross-encoder reads
    data_sha256: str = ""  # of the pairs, labels and logits that all this came from
    prior: float = 0.5
    evidence: str = ""  # what the scales are of
    fingerprint: str = ""

    def level(self, k: int = 1) -> Level:
        """The level of exactly k passages a side. Raises UserError when there is none."""
        return levels.exactly(self.levels, k)

    @property
    def has_second_stage(self) -> bool:
        """Whether any pair can reach the cross-encoder; where none does, nobody loads it."""
        return any(level.prefilter < NONE_PASSES for level in self.levels)


@dataclass(frozen=True)
class Match:
    """One answer. `stage` says whose probability is the final one; `code` is a key of `decisions.CODES`."""

    decision: str
    code: str | None
    stage: str
    probability: float
    same_book: bool | None
    bi_probability: float
    cross_probability: float | None  # of both stages together (`calibration.Fusion`)
    threshold: float | None
    same_threshold: float | None
    different_threshold: float | None
    prior: float
    k: int  # passages that were read of either text
    calibrated: bool
    model: str


def make_spec(**values: Any) -> MatcherSpec:
    """A spec with its fingerprint, the SHA-256 of all the rest."""
    spec = MatcherSpec(**values)
    return MatcherSpec(**{**values, "fingerprint": _fingerprint(spec)})


def spec_dict(spec: MatcherSpec) -> dict[str, Any]:
    """The spec as matcher.json holds it."""
    return asdict(spec)


def _fingerprint(spec: MatcherSpec) -> str:
    text = json.dumps({**asdict(spec), "fingerprint": ""}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_spec(text: str | bytes) -> MatcherSpec:
    """Read matcher.json strictly. Raises UserError naming an unknown, missing or altered key."""
    values = json.loads(text)
    names = {field.name for field in fields(MatcherSpec)}
    for wrong, what in ((set(values) - names, "unknown"), (names - set(values), "missing")):
        if wrong:
            raise UserError(
                f"matcher.json: {what} key {sorted(wrong)[0]!r}; it holds {', '.join(sorted(names))}. Score and "
                "calibrate again"
            )
    try:
        spec = MatcherSpec(**{**values, "levels": tuple(levels.read(level) for level in values["levels"])})
    except TypeError as error:  # a key that is missing or unknown
        raise UserError(f"matcher.json: {error}; calibrate again instead of editing it") from error
    if spec.evidence != levels.EVIDENCE:
        raise UserError(f"matcher.json: scales of another evidence, {spec.evidence!r}; score and calibrate again")
    if _fingerprint(spec) != spec.fingerprint:
        raise UserError("matcher.json: its contents do not give its fingerprint; calibrate again instead of editing it")
    return spec


def absolute(uri: str) -> str:
    """The address with a local path made absolute, since Ray's workers run in other working directories."""
    storage, folder = _locate(uri)
    return storage.uri(folder) if storage.is_local else uri


def is_there(uri: str) -> bool:
    """Whether a matcher has been made at `uri`. Raises OSError where that cannot be asked."""
    storage, folder = _locate(uri)
    return storage.exists(f"{folder}/matcher.json")


def open_spec(uri: str) -> MatcherSpec:
    """The spec of the matcher artefact at `uri` (`<root>/models/<name>`, local or s3://). Reads that one file alone.

    Raises UserError when there is none.
    """
    storage, folder = _locate(uri)
    file = f"{folder}/matcher.json"
    if not storage.exists(file):
        raise UserError(f"matcher = {uri!r}: no {storage.uri(file)}; trainers.calibrate makes it")
    return load_spec(storage.read_bytes(file))


def open_model(uri: str, which: Literal["bi_encoder", "cross_encoder"]) -> Path:
    """Local folder of one model of the matcher at `uri`. Raises UserError when it is not the calibrated one."""
    storage, spec = _locate(uri)[0], open_spec(uri)
    folder, wanted = getattr(spec, which), getattr(spec, f"{which}_sha256")

    def check(local: Path) -> None:
        found = hub.weights_sha256(local)
        if found != wanted:
            raise UserError(
                f"{storage.uri(folder)}: weights {found[:12]} are not the calibrated {wanted[:12]}; calibrate again"
            )

    def fetch(target: Path) -> None:
        storage.download(folder, target)
        check(target)  # before it is kept, so that a wrong copy is not found again when the right model is back

    if not storage.is_local:
        return made_once(f"matcher-{which}-{wanted}", fetch)
    local = Path(storage.path(folder))
    check(local)
    return local


def _locate(uri: str) -> tuple[Storage, str]:
    """Root and folder of a matcher's address."""
    address, _, query = uri.partition("?")
    root, separator, name = address.rstrip("/").rpartition("/models/")
    if not separator or not name:
        raise UserError(f"matcher = {uri!r}: expected the address of a published matcher, <root>/models/<name>")
    return Storage(root + (f"?{query}" if query else "")), f"models/{name}"


def passages(text: str, spec: MatcherSpec) -> list[str]:
    """All chunks of a text, as `chunks.passages` says; `question` knows one that is shorter than a chunk."""
    return chunks.passages(text, size=spec.size, overlap=spec.overlap, min_chars=spec.min_chars)


def question(spec: MatcherSpec, a: Sequence[str], b: Sequence[str]) -> Question:
    """What is read of two texts, each given as all of its passages."""
    return levels.question(spec.levels, spec.min_chars, a, b)


def needs_cross(bi_scale: Scale, prefilter: float, bi_logits: np.ndarray) -> np.ndarray:
    """Which pairs (n,) bool the second stage has to look at, by the bi-encoder's evidence (n,), `levels.evidence`; none
    where it was calibrated to no weight."""
    return bi_scale.probability(bi_logits) >= prefilter


def two_stage(
    bi_scale: Scale, fusion: Fusion, prefilter: float, bi_logits: np.ndarray, cross_logits: np.ndarray
) -> np.ndarray:
    """Probabilities (n,) float64 of pairs by what both stages say of them, (n,) each: the bi-encoder's evidence and the
    cross-encoder's mean logit. Here alone stands the rule.

    Below the prefilter the bi-encoder's probability is final, else the cross-encoder's, which weighs its own logit
    with the bi-encoder's. Both are calibrated on the same pairs. A cross-encoder logit that nobody asked for is NaN;
    raises ValueError where one is missing that `needs_cross` asks for.
    """
    asked = needs_cross(bi_scale, prefilter, bi_logits)
    if np.isnan(np.asarray(cross_logits, dtype=np.float64)[asked]).any():
        raise ValueError("a pair at or above the prefilter needs the cross-encoder's logit")
    return np.where(asked, fusion.probability(cross_logits, bi_logits), bi_scale.probability(bi_logits))


def rule(spec: MatcherSpec, prior: float | None = None, k: int = 1) -> decisions.Rule:
    """How a level decides where `prior` of the pairs are of the same book. Raises UserError as `decisions.rule`."""
    level = spec.level(k)
    return decisions.rule(level.threshold, spec.objective, level.certificates, spec.prior, prior)


def check_prior(spec: MatcherSpec, prior: float | None) -> None:
    """Raises UserError for a prior at which some level cannot decide."""
    for level in spec.levels:
        rule(spec, prior, level.k)


def decide(
    spec: MatcherSpec,
    bi_logits: np.ndarray,
    cross_logits: np.ndarray,
    *,
    k: Sequence[int] | None = None,
    prior: float | None = None,
    calibrated: Sequence[bool] | None = None,
) -> list[Match]:
    """The answers for n pairs by what both stages say (n,), as in `two_stage`, at a prior (default: the spec's).

    `k` (n,): the level of each pair (default: single passages). `calibrated` (n,): whether each pair is as those that
    the level's scales were fitted on (default: all are).
    """
    bi_logits, cross_logits = np.asarray(bi_logits), np.asarray(cross_logits)
    of_level = np.ones(len(bi_logits), int) if k is None else np.asarray(k, int)
    told = [True] * len(bi_logits) if calibrated is None else list(calibrated)
    answers: dict[int, Match] = {}
    for number in np.unique(of_level).tolist():
        level, used = spec.level(number), rule(spec, prior, number)
        rows = np.flatnonzero(of_level == number)
        bi, cross = bi_logits[rows], cross_logits[rows]
        asked = needs_cross(level.bi_scale, level.prefilter, bi).tolist()
        first = level.bi_scale.probability(bi)
        final = two_stage(level.bi_scale, level.fusion, level.prefilter, bi, cross)
        both = (decisions.at_prior(p, level.calibration_prior, used.prior).tolist() for p in (first, final))
        for row, *values in zip(rows.tolist(), asked, *both, strict=True):
            answers[row] = _answer(spec, level, used, *values, told[row])
    return [answers[row] for row in range(len(bi_logits))]


def _answer(
    spec: MatcherSpec,
    level: Level,
    used: decisions.Rule,
    by_cross: bool,
    bi: float,
    probability: float,
    calibrated: bool,
) -> Match:
    decision, code = used.decide(probability, calibrated)
    certified = bool(used.certificates)
    return Match(
        decision=decision,
        code=code,
        stage="cross-encoder" if by_cross else "bi-encoder",
        probability=probability,
        same_book=None if decision == "undecided" else decision == "same",
        bi_probability=bi,
        cross_probability=probability if by_cross else None,
        threshold=None if certified else used.threshold,
        same_threshold=used.limit("same") if certified else None,
        different_threshold=used.limit("different") if certified else None,
        prior=used.prior,
        k=level.k,
        calibrated=calibrated,
        model=spec.fingerprint,
    )


def ordered(a: str, b: str) -> tuple[str, str]:
    """The two texts in one order, whichever way they came, so that both ways compute the same."""
    return (a, b) if a <= b else (b, a)


class TwoStage:
    """The whole matcher in one process: what evaluation and notebooks use."""

    def __init__(self, spec: MatcherSpec, bi: BiEncoder, cross: CrossEncoder | None, prior: float | None = None):
        self.spec, self.bi, self.cross, self.prior = spec, bi, cross, prior

    @classmethod
    def open(cls, uri: str, prior: float | None = None) -> "TwoStage":
        """From a published matcher's address. `prior`: the share of same-book pairs where it is used."""
        spec = open_spec(uri)
        check_prior(spec, prior)  # a prior that cannot be had is told before the models are loaded
        bi = BiEncoder.load(open_model(uri, "bi_encoder"))
        cross = CrossEncoder.load(open_model(uri, "cross_encoder")) if spec.has_second_stage else None
        return cls(spec, bi, cross, prior)

    def match(self, pairs: Sequence[tuple[str, str]]) -> list[Match]:
        """One answer per pair of texts of any length. Each pair is computed by itself, so that (a, b) and (b, a) agree
        to the last bit, whatever stands beside them in the list."""
        questions = [self.question(*pair) for pair in pairs]
        found = [self._evidence(question.a, question.b) for question in questions]
        bi_logits, cross_logits = np.array([evidence for _, evidence in found]), np.full(len(pairs), np.nan)
        for row, (question, (grid, _)) in enumerate(zip(questions, found, strict=True)):
            if needs_cross(question.level.bi_scale, question.level.prefilter, bi_logits[row]):
                cross_logits[row] = self._cross_logit(question, grid)
        k, calibrated = [question.level.k for question in questions], [question.calibrated for question in questions]
        return decide(self.spec, bi_logits, cross_logits, k=k, prior=self.prior, calibrated=calibrated)

    def question(self, a: str, b: str) -> Question:
        """What is read of two texts of any length, whichever way round they come."""
        return question(self.spec, *(passages(text, self.spec) for text in ordered(a, b)))

    def _evidence(self, a: list[str], b: list[str]) -> tuple[np.ndarray, float]:
        """Logits (k, k) of all cells, and what they say together."""
        embeddings, rows = zip(*((self.bi.encode(side), self.bi.rows(side)) for side in (a, b)), strict=True)
        return self.bi.evidence(embeddings, rows)

    def _cross_logit(self, question: Question, grid: np.ndarray) -> float:
        """Mean logit of the cells that tell the most."""
        chosen = levels.cells(grid, self.spec.max_cross_pairs)
        return float(self.cross.logits([(question.a[i], question.b[j]) for i, j in chosen]).mean())
