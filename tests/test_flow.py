"""Flows as they are written: overrides, and steps that stand once for each value."""

from pathlib import Path

import pytest

from pipelines import push
from quire import flow
from quire.errors import UserError
from quire.push import Pushed

FOLDS = """
each.fold = [0, 1]
[[steps]]
name = "documents"
run = "pipelines.documents"
[[steps]]
name = "chunk_{fold}"
run = "pipelines.chunk"
set = { name = "b-{fold}", documents = "b", split = { num_folds = 2, fold = "{fold}", shares.test = 0.0 } }
[[steps]]
name = "embed_{fold}"
run = "pipelines.embed"
set = { name = "b-{fold}", chunks = "b-{fold}" }
[[steps]]
name = "pairs"
run = "pipelines.pairs"
set = { name = "b", chunks = "b-0", neighbors = "b" }
"""


@pytest.fixture()
def folds(tmp_path: Path) -> str:
    (tmp_path / "folds.toml").write_text(FOLDS)
    return str(tmp_path / "folds.toml")


def test_steps_in_a_row_stand_once_for_each_value_block_by_block(folds: str) -> None:
    made = flow.load_flow(folds)
    assert [step.name for step in made.steps] == ["documents", "chunk_0", "embed_0", "chunk_1", "embed_1", "pairs"]
    assert made.steps[3].set == {
        "name": "b-1",
        "documents": "b",
        "split": {"num_folds": 2, "fold": 1, "shares": {"test": 0.0}},
    }
    assert made.steps[4].set == {"name": "b-1", "chunks": "b-1"}


def test_all_of_them_or_one_can_be_overridden(folds: str) -> None:
    made = flow.load_flow(folds, ["chunk_{fold}.size=20", "chunk_1.size=8", "chunk_0.name=x-{fold}", "root=there"])
    sizes = {step.name: step.set["size"] for step in made.steps if "size" in step.set}
    assert sizes == {"chunk_0": 20, "chunk_1": 8} and made.root == "there"
    for wrong in ("chunk_2.size=3", "chunk_{k}.size=3", "size=3", "chunk_0=3"):
        with pytest.raises(UserError, match="documents, chunk_0, embed_0, chunk_1"):
            flow.load_flow(folds, [wrong])


def test_steps_that_would_share_a_name_are_refused(folds: str) -> None:
    Path(folds).write_text(FOLDS.replace("[0, 1]", "[0, 0]"))
    with pytest.raises(UserError, match="two steps share a name"):
        flow.load_flow(folds)
    Path(folds).write_text(FOLDS.replace("each.fold = [0, 1]", "each = { fold = [0], k = [1] }"))
    with pytest.raises(UserError, match="each"):
        flow.load_flow(folds)


def test_a_step_that_makes_no_artefact_ends_a_flow_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []

    def sent(settings: push.PushConfig) -> push.Told:
        asked.append(settings.repo)
        return push.Told(Pushed("https://hub/me/set", ["manifest.json"], [], 0))

    monkeypatch.setattr(push, "run", sent)
    (tmp_path / "push.toml").write_text(
        '[[steps]]\nname = "push"\nrun = "pipelines.push"\nset = { kind = "chunks", name = "c", repo = "me/set" }\n'
    )
    assert flow.run(flow.load_flow(str(tmp_path / "push.toml"), [f"root={tmp_path / 'root'}"])) == {}
    told = capsys.readouterr().out
    assert asked == ["me/set"] and "https://hub/me/set" in told and "flow finished" in told
