"""Evaluate every system once on the test split: JSON, a table, and a self-contained HTML report.

    python -m trainers.evaluate trainers/experiments/books/evaluate.toml [key=value ...]

By stratum (`quire.strata`) and by pair type, with intervals over authors; where `masked` names the predictions of the
same pairs with names masked (`pipelines.score mask_names=true`), beside those: by rank alone, since every scale was
fitted on texts as they are. The baselines have then seen masked training texts, the models have not. All that is of
single chunks; where the matcher has further levels, AUC, ECE and Brier stand against the number of chunks a side.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from quire import (
    artifact,
    config,
    decisions,
    folds,
    level_curve,
    levels,
    matcher,
    matcher_report,
    metrics,
    report,
    strata,
)
from quire.artifact import Artifact, Draft
from quire.calibration import Scale, prior_weights
from quire.errors import UserError
from quire.levels import Level
from quire.strata import Stratum
from trainers.tracker import TrackedRuntime, log_report


class EvaluateConfig(config.Config):
    """What `trainers.evaluate` computes."""

    name: str
    predictions: str
    matcher: str
    masked: str | None = Field(default=None, description="predictions of the same pairs with names masked")
    topic: str = Field(default="untrained", description="the system whose score says how alike two topics are")
    num_bootstraps: int = Field(default=500, gt=0)
    seed: int = 0
    runtime: TrackedRuntime = TrackedRuntime()


CONFIG = EvaluateConfig


class Scores(NamedTuple):
    """What every system says of the test pairs: (n,) each."""

    probabilities: dict[str, np.ndarray]
    rankings: dict[str, np.ndarray]  # raw scores, which a flat scale has not made one
    thresholds: dict[str, float]


def run(settings: EvaluateConfig) -> Artifact:
    """Make the `reports` artefact: results, strata, pair_types, decisions and levels as JSON, table.txt, index.html.

    Raises UserError for predictions of other models than the matcher's, or masked ones of other pairs.
    """
    root = settings.runtime.root
    inputs = {
        "predictions": artifact.open_artifact(root, "predictions", settings.predictions),
        "matcher": artifact.open_artifact(root, "models", settings.matcher),
    }
    if settings.masked:
        inputs["masked"] = artifact.open_artifact(root, "predictions", settings.masked)
    _check_models(inputs)
    draft = artifact.begin_step(settings, "reports", inputs)
    if draft.published:
        return draft.published
    table = inputs["predictions"].read()
    every = table.filter(pc.equal(table["split"], "test"))
    test = levels.of_level(every, 1)
    topic = topic_of(test, settings.topic)
    draws = {"num_samples": settings.num_bootstraps, "seed": settings.seed}
    measure = Measure(test, draws, prior=_spec(inputs["matcher"]).level(1).calibration_prior)
    scores = system_scores(test, inputs["matcher"])
    mined = mined_pairs(root, inputs["predictions"], test)
    found, types = strata.strata(test, topic, mined=mined), strata.pair_types(test)
    rows = measure.strata(scores, found)
    described = strata.described(found, topic)
    pair_types = {"raw": measure.rankings(scores, types)}
    if settings.masked:
        hidden = system_scores(same_pairs(test, inputs["masked"]), inputs["matcher"])
        title = "Names masked, against all negatives"
        everything = {"masked": found["overall"]._replace(title=title)}
        for system, values in measure.rankings(hidden, everything).items():  # their scales are those of raw texts
            rows[system] |= values
        described["masked"] = described["overall"] | {"title": title, "topic_auc": None}
        pair_types["names masked"] = measure.rankings(hidden, types)
    rising = _curve(every, inputs["matcher"], settings)
    text = "\n".join([report.table(main_strata(rows, test)), "", matcher_report.pair_type_tables(pair_types)])
    text += level_curve.told(rising)
    decided = decisions_on(every, inputs["matcher"])
    tables = [
        matcher_report.pair_type_section(pair_types),
        matcher_report.lead_section(pair_types),
        matcher_report.stratum_section(rows, described),
        matcher_report.decision_section(decided),
    ]
    made = _page(settings, rows, tables, test, scores, inputs["matcher"], ancestors(root, inputs))
    page = report.render(level_curve.added(made, rising))
    files = {"results": rows, "strata": described, "pair_types": pair_types, "decisions": decided, "levels": rising}
    return published(settings, draft, text, page, files)


def published(settings: Any, draft: Draft, text: str, page: str, files: dict[str, Any]) -> Artifact:
    """The report of a draft: what was measured as JSON, the table, the page; the tracker sees its results, too."""
    for name, content in files.items():
        draft.storage.write_json(f"{draft.folder}/{name}.json", content)
    draft.storage.write_bytes(f"{draft.folder}/table.txt", text.encode())
    draft.storage.write_bytes(f"{draft.folder}/index.html", page.encode())
    log_report(settings, draft, page, files["results"])
    where = draft.storage.uri(f"{draft.folder}/index.html")
    return draft.publish(summary=f"{text}\nreport: {where}", facts=files)


class Measure:
    """Metrics and intervals of a table of pairs, all by the same `draws` of authors (`metrics.author_bootstrap`).

    `groups` (n,): which model scored a pair; AUCs compare pairs of one alone.
    """

    def __init__(self, table: pa.Table, draws: dict[str, int], prior: float, groups: np.ndarray | None = None):
        self.authors, self.draws, self.prior = _authors(table), draws, prior
        self.groups = np.zeros(table.num_rows, int) if groups is None else groups

    def strata(self, scores: Scores, found: dict[str, Stratum]) -> dict[str, dict[str, dict[str, Any]]]:
        """system -> stratum -> metrics, with the interval of the AUC, and over all pairs that of every metric; and how
        far the final answer leads, as in `rankings`."""
        rows = self.rankings(scores, found)
        for system, values in scores.probabilities.items():
            threshold = scores.thresholds[system]
            measured = rows[matcher_report.title(system)]
            for name, (_, chosen, classes) in found.items():
                labels, ranking = classes[chosen], scores.rankings[system][chosen]
                groups = self.groups[chosen]
                options = {"threshold": threshold, "prior": self.prior, "ranking": ranking, "groups": groups}
                measured[name] |= metrics.metrics(labels, values[chosen], **options)
                if name == "overall":
                    authors = [side[chosen] for side in self.authors]
                    bounds = metrics.metric_intervals(labels, values[chosen], *authors, **options, **self.draws)
                    measured[name] |= {f"{metric}_interval": list(pair) for metric, pair in bounds.items()}
        return rows

    def rankings(self, scores: Scores, found: dict[str, Stratum]) -> dict[str, dict[str, dict[str, Any]]]:
        """system -> pair types -> AUC and by how much the final answer's is higher (`lead`), each with its interval."""
        rows: dict[str, dict[str, dict[str, Any]]] = {matcher_report.title(system): {} for system in scores.rankings}
        for name, (_, chosen, classes) in found.items():
            authors, groups = [side[chosen] for side in self.authors], self.groups[chosen]
            drawn = {
                system: metrics.author_aucs(classes[chosen], values[chosen], *authors, groups=groups, **self.draws)
                for system, values in scores.rankings.items()
            }
            values = {
                system: metrics.auc(classes[chosen], values[chosen], groups=groups)
                for system, values in scores.rankings.items()
            }
            for system, aucs in drawn.items():
                rows[matcher_report.title(system)][name] = {
                    "auc": values[system],
                    "auc_interval": list(metrics.interval(aucs)),
                    "lead": values["two_stage"] - values[system],
                    "lead_interval": list(metrics.interval(drawn["two_stage"] - aucs)),
                }
        return rows


def _curve(test: pa.Table, made: Artifact, settings: EvaluateConfig) -> level_curve.Curve:
    """The curve over the levels, or over single passages alone. Raises UserError where the matcher has other levels
    than the test pairs: of other texts."""
    known, scored = [level.k for level in _spec(made).levels], levels.scored(test)
    if scored not in ([1], known):
        raise UserError(
            f"predictions: of {scored} passages a side, the matcher {made.name!r} is calibrated for {known}; score "
            "the same ones, and calibrate by them"
        )
    draws = {"num_samples": settings.num_bootstraps, "seed": settings.seed}
    tables = {k: levels.of_level(test, k) for k in scored}
    return curve({k: (table, system_scores(table, made, k)) for k, table in tables.items()}, draws)


def curve(
    by_level: dict[int, tuple[pa.Table, Scores]],
    draws: dict[str, int],
    groups: Mapping[int, np.ndarray] | None = None,
) -> level_curve.Curve:
    """How good every system is at each level, from its pairs and what is said of them. `groups`: as in `Measure`, of
    each level."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for k, (table, scores) in by_level.items():
        labels, authors, of = table["label"].to_numpy(), _authors(table), groups and groups[k]
        for system, values in scores.rankings.items():
            found.setdefault(matcher_report.title(system), {})[str(k)] = {
                "auc": metrics.auc(labels, values, groups=of),
                "auc_interval": list(metrics.author_bootstrap(labels, values, *authors, groups=of, **draws)),
                **metrics.quality(labels, scores.probabilities[system]),
                "num_positives": int(labels.sum()),
                "num_negatives": int((1 - labels).sum()),
            }
    found[level_curve.FINAL][str(k)]["by_length"] = _by_length(k, table, scores.rankings["two_stage"], of)
    return found


def _by_length(k: int, table: pa.Table, ranking: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """AUC of the final answer where the shorter text is of so many times k chunks, as far as there are such pairs."""
    labels, found = table["label"].to_numpy(), {}
    groups = np.zeros(len(labels), int) if groups is None else groups
    times = np.minimum(table["num_a"].to_numpy(), table["num_b"].to_numpy()) / k
    for name, (low, high) in level_curve.LENGTHS.items():
        of = (low <= times) & (times < high)
        if metrics.any_couple(labels[of], groups[of]):
            value = metrics.auc(labels[of], ranking[of], groups=groups[of])
            found[name] = {"auc": value, "num_pairs": int(of.sum())}
    return found


def _authors(table: pa.Table) -> list[np.ndarray]:
    return [np.asarray(table[side].to_pylist(), dtype=object) for side in ("author_a", "author_b")]


def _spec(made: Artifact) -> matcher.MatcherSpec:
    return matcher.load_spec(made.storage.read_bytes(f"{made.folder}/matcher.json"))


def system_scores(table: pa.Table, made: Artifact, k: int = 1) -> Scores:
    """Every system of a matcher on the pairs of a table of predictions, all of one level; two-stage first."""
    calibration, spec = made.read_json("calibration.json")["levels"][str(k)], _spec(made)
    level = spec.level(k)
    scales = {name: Scale(**facts["scale"]) for name, facts in calibration["systems"].items()}
    # The same cut on the scores, on the scale of these probabilities, which are for the calibration pairs' own prior.
    threshold = decisions.at_prior(np.asarray(level.threshold), spec.prior, level.calibration_prior)
    return said(table, level, scales, {**calibration["thresholds"], "two_stage": float(threshold)})


def said(table: pa.Table, level: Level, scales: Mapping[str, Scale], thresholds: dict[str, float]) -> Scores:
    """What every system says of a table of predictions, on the scales that it was given; two-stage first."""
    logits = {name: table[name].to_numpy() for name in scales}
    stages = (logits[name] for name in ("bi_encoder", "cross_encoder"))
    both = matcher.two_stage(scales["bi_encoder"], level.fusion, level.prefilter, *stages)
    probabilities = {"two_stage": both, **{name: scale.probability(logits[name]) for name, scale in scales.items()}}
    return Scores(probabilities, {"two_stage": both, **logits}, thresholds)


def decisions_on(test: pa.Table, made: Artifact) -> list[dict[str, Any]]:
    """What a matcher promised of each side at each level, and what it kept on test pairs, mixed as the promise says.

    `decided`: share of all pairs that the side was said of; `precision`: the share of those that it was true of, None
    where it was never said. `c_at_1` and `f05u` (`metrics.pan`) are of all decisions of the level, the undecided
    unanswered, on the test pairs as they are mixed.
    """
    spec, rows = _spec(made), []
    for level in (level for level in spec.levels if level.certificates):
        table = levels.of_level(test, level.k)
        labels = table["label"].to_numpy()
        logits = (table[name].to_numpy() for name in ("bi_encoder", "cross_encoder"))
        answers = matcher.decide(spec, *logits, k=[level.k] * len(labels))
        weights = prior_weights(labels, spec.prior)
        sides = {"same": 1.0, "different": 0.0}
        official = metrics.pan(labels, np.array([sides.get(answer.decision, metrics.UNANSWERED) for answer in answers]))
        of_level = {"k": level.k, "c_at_1": official["c_at_1"], "f05u": official["f05u"]}
        for certificate in level.certificates:
            said = np.fromiter((answer.decision == certificate.side for answer in answers), bool, len(answers))
            right = labels[said] == (certificate.side == "same")
            precision = float(np.average(right, weights=weights[said])) if said.any() else None
            share = float(np.average(said, weights=weights))
            rows.append({**of_level, "certificate": asdict(certificate), "decided": share, "precision": precision})
    return rows


def check_reading(predictions: Artifact, masked: Artifact | None = None) -> None:
    """Raises UserError for predictions of masked texts, and for `masked` ones of texts as they are, or by other models
    than the predictions."""
    for key, made, is_masked in (("predictions", predictions, False), ("masked", masked, True)):
        if made and bool(made.manifest["recipe"].get("mask_names")) != is_masked:
            raise UserError(
                f"{key} = {made.name!r}: scored with mask_names = {str(not is_masked).lower()}; name those that "
                f"pipelines.score made with mask_names = {str(is_masked).lower()}"
            )
    for role in folds.ROLES if masked else ():
        raw, hidden = (made.manifest["inputs"].get(role) for made in (predictions, masked))
        if raw and hidden and raw["content"] != hidden["content"]:
            raise UserError(
                f"masked = {masked.name!r}: scored by {hidden['name']!r}, but {predictions.name!r} by {raw['name']!r}, "
                "or by another one of that name; score both with one"
            )


def _check_models(inputs: dict[str, Artifact]) -> None:
    """The scales hold for the very models that they were fitted to, and for what those say now."""
    check_reading(inputs["predictions"], inputs.get("masked"))
    for scored in ("predictions", "masked"):
        if scored in inputs:
            levels.check_says(inputs[scored])
        for role in ("bi_encoder", "cross_encoder"):
            used, fitted = (
                inputs[name].manifest["inputs"].get(role) if name in inputs else None for name in (scored, "matcher")
            )
            if used and fitted and used["content"] != fitted["content"]:
                raise UserError(
                    f"{scored} = {inputs[scored].name!r}: scored by {used['name']!r}, but the matcher "
                    f"{inputs['matcher'].name!r} was calibrated with {fitted['name']!r}, or with another one of that "
                    "name; score again with that"
                )


def topic_of(test: pa.Table, system: str) -> np.ndarray:
    """The scores (n,) that say how alike two topics are. Raises UserError for a system that was not scored."""
    if system not in test.column_names:
        raise UserError(f"topic = {system!r}: predictions have no such system, but {', '.join(test.column_names)}")
    return test[system].to_numpy()


def mined_pairs(root: str, predictions: Artifact, test: pa.Table) -> np.ndarray:
    """Which negatives (n,) bool of a table of predictions a search found, `strata.nearest`; none where their pairs were
    drawn by no neighbours."""
    for kind in ("pairs", "neighbors"):
        described = predictions.manifest["inputs"].get(kind)
        if not described:
            return np.zeros(test.num_rows, bool)
        made = artifact.open_artifact(root, kind, described["name"])
        if made.content != described["content"]:
            raise UserError(
                f"{kind} = {made.name!r}: made again since predictions were scored by them; score those pairs anew"
            )
        predictions = made
    return strata.nearest(test, predictions.read())


def same_pairs(test: pa.Table, masked: Artifact) -> pa.Table:
    """The masked test pairs of single chunks. Raises UserError when they are others."""
    table = masked.read()
    table = levels.of_level(table.filter(pc.equal(table["split"], "test")), 1)
    if table["pair_id"].to_pylist() != test["pair_id"].to_pylist():
        raise UserError(
            f"masked = {masked.name!r}: its test pairs are not those of the predictions: score the same ones"
        )
    return table


def main_strata(rows: dict[str, dict[str, Any]], test: pa.Table) -> dict[str, dict[str, Any]]:
    """The strata of the first table: all pairs, and each negative type."""
    kinds = set(strata.negative_types(test).tolist())
    return {system: {k: v for k, v in cells.items() if k == "overall" or k in kinds} for system, cells in rows.items()}


def ancestors(root: str, inputs: dict[str, Artifact]) -> list[Artifact]:
    """Every artefact that the inputs came from, oldest first."""
    found: dict[str, Artifact] = {}
    waiting = list(inputs.values())
    while waiting:
        item = waiting.pop()
        if item.folder in found:
            continue
        found[item.folder] = item
        for described in item.manifest["inputs"].values():
            if isinstance(described, dict):
                waiting.append(artifact.open_artifact(root, described["kind"], described["name"]))
    return sorted(found.values(), key=lambda item: item.manifest["ended"])


def _page(
    settings: EvaluateConfig,
    rows: dict[str, dict[str, Any]],
    tables: list[report.Section],
    test: pa.Table,
    scores: Scores,
    made: Artifact,
    ancestry: list[Artifact],
) -> report.Report:
    two = rows["two-stage"]["overall"]
    low, high = two["auc_interval"]
    provenance = ("recipe", "inputs", "fingerprint", "git_commit", "versions")
    kinds = strata.negative_types(test)
    return report.Report(
        title=f"Book matcher: {settings.name}",
        question="Do two passages come from the same book?",
        headline=(
            f"Two-stage AUC {two['auc']:.3f} (95 % interval over authors {low:.3f} to {high:.3f}) on {test.num_rows} "
            f"pairs of {matcher_report.split_by(ancestry)}s that no model has seen; ECE {two['ece']:.3f}."
        ),
        rows=main_strata(rows, test),
        plots=matcher_report.figures(test["label"].to_numpy(), kinds, scores.probabilities, scores.rankings, ancestry),
        tables=tables,
        sections=[
            matcher_report.calibration_section(made.read_json("calibration.json")["levels"]["1"]),
            *matcher_report.making_sections(ancestry),
        ],
        details={f"{a.folder}: recipe and provenance": {key: a.manifest[key] for key in provenance} for a in ancestry},
    )


if __name__ == "__main__":
    config.main(CONFIG, run)
