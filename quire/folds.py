"""Predictions of folds: each of the test pairs of some authors, by models that were trained on all the others."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from quire import artifact, levels
from quire.artifact import Artifact
from quire.errors import UserError

ROLES = ("bi_encoder", "cross_encoder")


def tested(made: Artifact) -> pa.Table:
    """The test pairs of a fold's predictions. Raises UserError where there is none."""
    table = made.read()
    table = table.filter(pc.equal(table["split"], "test"))
    if not table.num_rows:
        raise UserError(f"predictions = {made.name!r}: no test pair; chunk with split.fold and score again")
    return table


def check_apart(names: Sequence[str], folds: Sequence[pa.Table]) -> None:
    """Raise UserError where an author has test pairs in two folds: a model may have seen whom it is tested on."""
    seen: dict[str, str] = {}
    for name, table in zip(names, folds, strict=True):
        authors = {author for side in ("author_a", "author_b") for author in table[side].to_pylist()}
        for author in sorted(authors & seen.keys()):
            raise UserError(
                f"predictions: {author!r} is tested in {seen[author]!r} and in {name!r}; give folds of one deal "
                "(pipelines.chunk split.num_folds, the same seed)"
            )
        seen |= dict.fromkeys(authors, name)


def check_levels(names: Sequence[str], folds: Sequence[pa.Table]) -> list[int]:
    """The levels that all folds were scored at. Raises UserError where they differ: so do the texts of a level then."""
    found = [levels.scored(table) for table in folds]
    for name, of_fold in zip(names, found, strict=True):
        if of_fold != found[0]:
            raise UserError(
                f"predictions = {name!r}: of {of_fold} passages a side, {names[0]!r} of {found[0]}; score both alike"
            )
    return found[0]


def check_cells(folds: Sequence[Artifact]) -> None:
    """Raise UserError where the cross-encoder was asked about more cells of a text in one fold than in another."""
    first, *others = folds
    for made in others:
        asked, theirs = (of.manifest["recipe"].get("max_cross_pairs") for of in (first, made))
        if asked != theirs:
            raise UserError(
                f"predictions = {made.name!r}: max_cross_pairs = {theirs}, but {asked} in {first.name!r}; score both "
                "alike"
            )


def check_models(folds: Sequence[Artifact], served: dict[str, Artifact]) -> None:
    """Raise UserError where a fold's models were not made by the recipes of those that are `served`.

    Other authors to train on is all that may differ, and so the names of what a model was made from.
    """
    for made in folds:
        for role in ROLES:
            described = made.manifest["inputs"][role]
            model = artifact.open_artifact(made.storage, described["kind"], described["name"])
            recipes = [_own(found) for found in (model, served[role])]
            differing = sorted(key for key in recipes[0] | recipes[1] if recipes[0].get(key) != recipes[1].get(key))
            if differing:
                key, (theirs, ours) = differing[0], (recipe.get(differing[0]) for recipe in recipes)
                raise UserError(
                    f"{role} = {served[role].name!r}: {key} = {ours!r}, but {theirs!r} for {model.name!r}, by which "
                    f"{made.name!r} was scored; train both by one recipe"
                )


def _own(model: Artifact) -> dict[str, object]:
    """What a model's recipe says beside what it is called and what it was made from."""
    return {k: v for k, v in model.manifest["recipe"].items() if k != "name" and k not in model.manifest["inputs"]}
