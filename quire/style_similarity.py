"""Style similarity: how likely two texts are by one author, from the calibrated cosine of their embeddings.

A text is cut as the training data was, and at most so many evenly spaced passages of it are read as the largest level
that both texts have passages for; the score is the mean of all cosines between the two sides.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from quire import artifact, chunks, decisions, encoder, hub
from quire.artifact import Artifact
from quire.calibration import Scale
from quire.errors import UserError
from quire.style_pairs import normalised, spread
from quire.style_scale import METHODS, Curve, Isotonic

_FILE = "style.json"


@dataclass(frozen=True)
class Level:
    """The calibration for texts of which `passages` are read: what it is, and what it rests on."""

    passages: int
    method: str  # logistic: curve is slope and bias; isotonic: knots x and y
    curve: Mapping[str, Any]
    prior: float  # share of pairs of one author among those it was fitted on
    num_pairs: int
    num_authors: int  # author groups
    num_too_short: int  # pairs left out, since a document has fewer passages
    cross_validated: Mapping[str, Mapping[str, float]]  # method -> brier and log_loss, on authors left out
    num_cross_validated: int

    @property
    def scale(self) -> Curve:
        """The curve as a function of cosines."""
        if self.method == "logistic":
            return Scale(**self.curve)
        return Isotonic(**{key: tuple(values) for key, values in self.curve.items()})


@dataclass(frozen=True)
class StyleSpec:
    """All that turns an encoder into style similarity; stored as style.json."""

    model: str  # models/NAME below the artefact's root, a folder, or a name on the hub
    model_sha256: str
    mask_names: bool  # of every text, before it is read
    size: int
    overlap: int
    min_chars: int
    levels: tuple[Level, ...]  # by rising passages, the first of one
    max_passages: int  # of a text as they were fitted; a longer one is read, but not calibrated
    criterion: str
    data_sha256: str  # of the pairs, labels and cosines that all this came from
    num_pairs: int
    num_authors: int
    fingerprint: str = ""


@dataclass(frozen=True)
class StyleScore:
    """One answer."""

    cosine: float
    probability: float  # that one author wrote both
    calibrated: bool  # whether the texts are like those of the calibration; else the probability only ranks
    passages: int  # read of each text
    num_passages_a: int
    num_passages_b: int
    prior: float
    model: str


def make_spec(**values: Any) -> StyleSpec:
    """A spec with its fingerprint, the SHA-256 of all the rest."""
    return StyleSpec(**{**values, "fingerprint": _fingerprint(StyleSpec(**values))})


def spec_dict(spec: StyleSpec) -> dict[str, Any]:
    """The spec as style.json holds it."""
    return asdict(spec)


def _fingerprint(spec: StyleSpec) -> str:
    return hashlib.sha256(json.dumps({**asdict(spec), "fingerprint": ""}, sort_keys=True).encode()).hexdigest()


def load_spec(text: str | bytes) -> StyleSpec:
    """Read style.json strictly. Raises UserError naming an unknown, missing or altered key."""
    values = json.loads(text)
    _check_keys(values, StyleSpec, _FILE)
    for place, level in enumerate(values["levels"]):
        where = f"{_FILE}: levels.{place}"
        _check_keys(level, Level, where)
        wanted = {"logistic": {"slope", "bias"}, "isotonic": {"x", "y"}}.get(level["method"])
        if wanted is None or set(level["curve"]) != wanted:
            raise UserError(f"{where}: method {level['method']!r} with {sorted(level['curve'])}; one of {METHODS}")
    spec = StyleSpec(**{**values, "levels": tuple(Level(**level) for level in values["levels"])})
    if _fingerprint(spec) != spec.fingerprint:
        raise UserError(f"{_FILE}: its contents do not give its fingerprint; calibrate again instead of editing it")
    return spec


def _check_keys(values: Mapping[str, Any], kind: type, where: str) -> None:
    names = {field.name for field in fields(kind)}
    for wrong, what in ((set(values) - names, "unknown"), (names - set(values), "missing")):
        if wrong:
            raise UserError(f"{where}: {what} key {sorted(wrong)[0]!r}; it holds {', '.join(sorted(names))}")


def open_spec(uri: str) -> tuple[Artifact, StyleSpec]:
    """The artefact at `uri` (`<root>/models/<name>`, local or s3://) and its spec. Raises UserError for another one."""
    address, _, query = uri.partition("?")
    root, separator, name = address.rstrip("/").rpartition("/models/")
    if not separator or not name:
        raise UserError(f"style = {uri!r}: expected the address of a published one, <root>/models/<name>")
    made = artifact.open_artifact(root + (f"?{query}" if query else ""), "models", name)
    if _FILE not in made.manifest["files"]:
        raise UserError(f"style = {uri!r}: no {_FILE} in it; trainers.style makes it")
    return made, load_spec(made.storage.read_bytes(f"{made.folder}/{_FILE}"))


def load_model(model: str, root: str, mask_names: bool | None = None) -> tuple[SentenceTransformer, str]:
    """An encoder of ours or any other, and the SHA-256 of its weights.

    `mask_names`: how it is to read texts (default: as it was trained). Raises UserError for a model that was trained
    with names masked and is to read them.
    """
    folder = hub.model_folder(model, root)
    made = encoder.load_encoder(folder)
    if mask_names is False and encoder.masks_names(made):
        raise UserError(f"mask_names = false: {model} was trained with names masked; leave it out")
    made.mask_names = encoder.masks_names(made) if mask_names is None else mask_names
    return made, hub.weights_sha256(folder)


class StyleSimilarity:
    """The whole score in one process. `prior`: the share of pairs by one author where it is used."""

    def __init__(self, spec: StyleSpec, model: SentenceTransformer, prior: float | None = None):
        if prior is not None and not 0 < prior < 1:
            raise UserError(f"prior = {prior}: a share above 0 and below 1")
        self.spec, self.model, self.prior = spec, model, prior
        self.prompt = encoder.document_prompt(model, None, None)

    @classmethod
    def open(cls, uri: str, prior: float | None = None) -> "StyleSimilarity":
        """From a published artefact's address. Raises UserError when its encoder is not the calibrated one."""
        made, spec = open_spec(uri)
        model, found = load_model(spec.model, made.storage.root, spec.mask_names)
        if found != spec.model_sha256:
            raise UserError(f"{spec.model}: weights {found[:12]} are not the calibrated {spec.model_sha256[:12]}")
        return cls(spec, model, prior)

    def passages(self, text: str) -> tuple[list[str], bool]:
        """The chunks of a text as the training data was cut, and whether there is a whole one; else its beginning."""
        spec = self.spec
        found = chunks.passages(text, size=spec.size, overlap=spec.overlap, min_chars=spec.min_chars)
        return found, len(found[0]) >= spec.min_chars

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[StyleScore]:
        """One answer per pair of texts; (a, b) and (b, a) of one call agree to the last bit."""
        cut = {text: self.passages(text) for text in dict.fromkeys(text for pair in pairs for text in pair)}
        chosen = [self._chosen(cut, pair) for pair in pairs]
        read = list(dict.fromkeys(passage for _, sides in chosen for side in sides for passage in side))
        vectors = normalised(encoder.encode(self.model, read, prompt=self.prompt)) if read else None
        place = {passage: row for row, passage in enumerate(read)}
        answers = []
        for pair, (level, sides) in zip(pairs, chosen, strict=True):
            means = [vectors[[place[passage] for passage in side]].mean(0, dtype=np.float64) for side in sides]
            answers.append(self._answer(level, float(means[0] @ means[1]), *(cut[text] for text in pair)))
        return answers

    def _chosen(
        self, cut: Mapping[str, tuple[list[str], bool]], pair: tuple[str, str]
    ) -> tuple[Level, list[list[str]]]:
        """The level of a pair, and the passages that are read of each side."""
        found = [cut[text][0] for text in pair]
        fewest = min(map(len, found))
        level = [level for level in self.spec.levels if level.passages <= fewest][-1]
        return level, [[side[row] for row in spread(len(side), level.passages)] for side in found]

    def _answer(self, level: Level, cosine: float, a: tuple[list[str], bool], b: tuple[list[str], bool]) -> StyleScore:
        longest = max(len(a[0]), len(b[0]))
        probability = level.scale.probability(np.asarray([cosine]))
        prior = level.prior if self.prior is None else self.prior
        return StyleScore(
            cosine=cosine,
            probability=float(decisions.at_prior(probability, level.prior, prior)[0]),
            calibrated=a[1] and b[1] and longest <= self.spec.max_passages,
            passages=level.passages,
            num_passages_a=len(a[0]),
            num_passages_b=len(b[0]),
            prior=prior,
            model=self.spec.fingerprint,
        )
