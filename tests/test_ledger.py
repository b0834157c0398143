"""What a stage cost is told in its manifest, in money where there are prices, and for a whole flow at its end."""

import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pipelines import ledger as step
from quire import accounts, artifact, config, flow, ledger, report
from quire.artifact import Shard
from quire.errors import UserError


class Settings(config.Config):
    name: str
    runtime: config.Runtime


def made(root: Path, name: str, prices: config.Prices | None, **facts: int) -> artifact.Artifact:
    settings = Settings(name=name, runtime=config.Runtime(root=str(root), prices=prices))
    draft = artifact.begin_step(settings, "chunks", {"source": "abc"})
    draft.write_shard(0, Shard(table=pa.table({"x": [1]}), bytes_in=2_000_000, cpu=3600.0, gpu=1800.0))
    return draft.publish(num_shards=1, facts=facts)


def test_money_is_hours_by_their_price(tmp_path: Path) -> None:
    prices = config.Prices(cpu_hour=0.05, gpu_hour=2.0, currency="EUR")
    cost = made(tmp_path, "priced", prices, tokens=7).manifest["cost"]
    assert cost["money"] == pytest.approx(0.05 + 1.0, rel=1e-3)  # and the driver's own moment
    assert (cost["tokens"], cost["prices"]) == (7, prices.model_dump())
    assert ledger.told(cost) == "1.0500 EUR"


def test_prices_are_no_part_of_a_result(tmp_path: Path) -> None:
    first = made(tmp_path, "same", None)
    settings = Settings(name="same", runtime=config.Runtime(root=str(tmp_path), prices=config.Prices(cpu_hour=1.0)))
    again = artifact.begin_step(settings, "chunks", {"source": "abc"})
    assert again.published and again.published.fingerprint == first.fingerprint
    assert "money" not in first.manifest["cost"] and ledger.told(first.manifest["cost"]) == "-"


def test_the_sum_is_in_money_only_where_every_stage_is(tmp_path: Path) -> None:
    euro = made(tmp_path, "a", config.Prices(cpu_hour=1.0, currency="EUR"))
    manifests = {
        "first": euro.manifest,
        "second": made(tmp_path, "b", config.Prices(cpu_hour=2.0, currency="EUR")).manifest,
    }
    last = ledger.table(manifests).splitlines()[-1].split()
    assert (last[0], last[-2:], last[4]) == ("sum", ["3.0000", "EUR"], "4.0")
    manifests["third"] = made(tmp_path, "c", None).manifest
    assert ledger.table(manifests).splitlines()[-1].split()[-1] == "-"
    manifests["third"] = made(tmp_path, "d", config.Prices(currency="USD")).manifest
    assert not ledger.table(manifests).splitlines()[-1].startswith("sum")


def test_an_estimate_is_the_sample_by_its_share() -> None:
    sample = ledger.Sample(share=0.01, rows=100, tokens=25_000, bytes_out=123_456, cpu=36.0, gpu=18.0)
    told = ledger.estimate(sample, config.Prices(cpu_hour=0.1, gpu_hour=2.0).model_dump())
    assert "100 rows, 1.0% of the work" in told and "10,000 rows, 2,500,000 tokens, 12 MB" in told
    assert "1 CPU hours, 0.5 GPU hours; money: 1.1000 USD" in told and "by the clock 0.5 hours on one GPU" in told
    told = ledger.estimate(ledger.Sample(share=0.01, rows=100, tokens=0, bytes_out=0, cpu=36.0), None)
    assert f"by the clock {1 / os.cpu_count():.2g} hours on the {os.cpu_count()} CPUs of this machine" in told


def ledger_of(root: Path, *changes: str) -> accounts.Ledger:
    return step.run(config.load(step.CONFIG, None, [f"root={root}", *changes]))


def test_the_ledger_of_a_root_has_every_stage_at_its_own_prices_or_at_those_given(tmp_path: Path) -> None:
    made(tmp_path, "b-first", config.Prices(cpu_hour=1.0, gpu_hour=2.0), tokens=2_000_000)
    made(tmp_path, "a-second", None)
    artifact.begin(str(tmp_path), "embeddings", "begun", recipe={}, inputs={})
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    own = ledger_of(tmp_path)
    assert list(own.costs) == ["chunks/b-first", "chunks/a-second"] and own.unfinished == ["embeddings/begun"]
    page = (tmp_path / ledger.PAGE).read_text()
    assert "<td>2.0000 USD</td>" in page and "<td>1.0000</td>" in page  # a million tokens for one
    assert "without money: chunks/a-second" in page and "Unfinished and not counted: embeddings/begun" in page
    all_priced = ledger_of(tmp_path, "prices.cpu_hour=0.5", "prices.currency=EUR")
    assert own.told(0).splitlines()[-3].split()[-1] == "-"
    assert all_priced.told(0).splitlines()[-3].split()[-2:] == ["1.0000", "EUR"]
    assert "1.0000 EUR." in (tmp_path / ledger.PAGE).read_text()
    assert files == {path: path.read_bytes() for path in files}  # artefacts are left as they are


def test_a_root_without_artefacts_has_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="root = .* nothing is published there"):
        ledger_of(tmp_path)
    with pytest.raises(UserError, match="kinds: 'chunk' is none of documents, chunks"):
        ledger_of(tmp_path, 'kinds=["chunk"]')
    assert not list(tmp_path.iterdir())


def test_a_flow_leaves_the_ledger_of_its_root_to_which_its_pages_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "root"
    artifacts = {name: made(root, name, None) for name in ("earlier", "a", "b")}
    module = SimpleNamespace(run=lambda settings: artifacts[settings.name])
    steps = [(flow.Step(name=name, run="pipelines.x"), module, SimpleNamespace(name=name)) for name in "ab"]
    monkeypatch.setattr(flow, "configs", lambda _: steps)
    for _ in range(2):
        flow.run(flow.Flow(steps=[]))
        assert f"{root}/ledger.html" in capsys.readouterr().out
    page = (root / "ledger.html").read_text()
    assert all(f"<td>chunks/{name}</td>" in page for name in ("earlier", "a", "b")) and "href" not in page
    assert 'href="../../ledger.html"' in report.render(report.Report("t", "q", "h"))
    assert (root / "chunks" / "a" / "../../ledger.html").exists()
