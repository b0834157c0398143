"""Config: strict, and its errors name key, value and what is allowed."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from quire import config
from quire.errors import UserError


class Inner(config.Config):
    size: int = 14
    kind: str = "plain"


class Left(config.Config):
    kind: Literal["left"] = "left"
    size: int = 1


class Right(config.Config):
    kind: Literal["right"] = "right"
    width: int = 2


class Either(config.Config):
    side: Left | Right = Field(discriminator="kind")


class Outer(config.Config):
    name: str
    rate: float = 0.5
    inner: Inner = Inner()
    runtime: config.Runtime = config.Runtime()


def test_overrides_are_laid_over_the_file_and_typed(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('name = "file"\n[inner]\nsize = 3\n')
    made = config.load(Outer, str(file), ["inner.kind=fancy", "rate=1", "name=books"])
    assert made == Outer(name="books", rate=1.0, inner=Inner(size=3, kind="fancy"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("inner.sise=3", ["inner.sise", "unknown key", "size"]),
        ("inner.size=large", ["inner.size", "large", "integer"]),
        ('inner.size="3"', ["inner.size", "'3'", "integer"]),
        ("sise=3", ["sise", "unknown key", "inner, name, rate, runtime"]),
        ("rate=nan", ["rate"]),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config.load(Outer, None, ["name=x", override])
    assert all(word in str(caught.value) for word in words)


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(UserError) as caught:
        config.load(Outer, None, ["inner.size=x", "rate=y"])
    assert all(key in str(caught.value) for key in ("name", "inner.size", "rate"))


def test_the_printed_config_is_an_experiment_that_loads_to_the_same(tmp_path: Path) -> None:
    made = config.load(Outer, None, ["name=x", "inner.size=5"])
    file = tmp_path / "again.toml"
    file.write_text(config.to_toml(made))
    assert config.load(Outer, str(file)) == made


def test_the_recipe_leaves_out_where_and_with_what() -> None:
    made = config.load(Outer, None, ["name=x", "runtime.root=elsewhere", "runtime.num_workers=7"])
    assert config.recipe(made) == config.recipe(config.load(Outer, None, ["name=y"]))


def test_a_mistake_on_the_command_line_exits_with_2(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        config.main(Outer, lambda made: None, ["name=x", "inner.sise=1"])
    assert caught.value.code == 2
    assert "inner.sise" in capsys.readouterr().err


def test_a_table_of_another_kind_starts_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[side]\nkind = "left"\nsize = 5\n')
    made = config.load(Either, str(file), ["side.kind=right", "side.width=3"])
    assert made.side == Right(width=3)


def test_an_unknown_key_of_a_kind_is_named_as_the_user_wrote_it() -> None:
    with pytest.raises(UserError, match=r"side\.size: unknown key; allowed here: kind, width"):
        config.load(Either, None, ["side.kind=right", "side.size=3"])
