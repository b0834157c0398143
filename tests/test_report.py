"""The report: one file, well-formed, self-contained, with what was measured in it."""

import re
from html.parser import HTMLParser

import numpy as np

from quire import decision_plots, metrics, plots, report

VOID = {"meta", "br", "img", "path", "use", "rect", "line", "circle", "polyline"}
EVIL = "<script>alert('x')</script>"


def page() -> tuple[str, dict]:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 300)
    kinds = np.where(labels == 1, "positive", np.where(draw.random(300) < 0.5, "random", "neighbor")).astype(object)
    systems = {"good": np.clip(labels * 0.5 + draw.random(300) / 2, 0, 1), EVIL: draw.random(300)}
    chosen = {kind: (labels == 1) | (kinds == kind) for kind in ("random", "neighbor")}
    chosen = {"overall": labels < 2, **chosen}
    rows = {
        name: {stratum: metrics.metrics(labels[use], p[use], 0.5) for stratum, use in chosen.items()}
        for name, p in systems.items()
    }
    rows["good"]["overall"]["auc_interval"] = [0.123, 0.987]
    pairs = {name: (labels, p) for name, p in systems.items()}
    history = [
        {"step": 0, "eval_auc": 0.5},
        {"step": 1, "loss": 1.25},
        {"step": 2, "loss": 1.0},
        {"step": 2, "eval_auc": 0.75},
    ]
    figures = [
        report.Plot("ROC", decision_plots.roc(pairs), "read me"),
        report.Plot("PR", decision_plots.precision_recall(pairs), "read me"),
        report.Plot("Reliability", decision_plots.reliability(pairs), "read me"),
        report.Plot("Losses", plots.losses({"bi": history}), "read me"),
        report.Plot("Scores", decision_plots.score_histograms(labels, kinds, systems["good"]), "read me"),
    ]
    made = report.Report(
        title=f"Report {EVIL}",
        question="Same book?",
        headline="AUC",
        rows=rows,
        plots=figures,
        sections=[report.Section("Data", EVIL, ("a", "b"), [(EVIL, 17)])],
        details={"config": {"key": EVIL}},
    )
    return report.render(made), rows


class Balance(HTMLParser):
    """Open tags, and whether each is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_escapes_what_it_shows() -> None:
    html, _ = page()
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert "<script" not in html


def test_the_page_loads_nothing_from_anywhere() -> None:
    html, _ = page()
    addresses = re.findall(r'(?:src|href|xlink:href|url\()\s*=?\s*["\']?([^"\')\s>]+)', html)
    assert [address for address in addresses if not address.startswith("#")] == ["../../ledger.html"]  # a link
    assert "<a href=" not in report.render(report.Report("t", "q", "h"), ledger=None)


def test_the_numbers_of_every_system_and_stratum_are_there_and_the_best_is_marked() -> None:
    html, rows = page()
    for system in rows.values():
        for values in system.values():
            assert f"{values['auc']:.3f}" in html
    assert f"<b>{rows['good']['overall']['auc']:.3f}</b>" in html
    assert "[0.123, 0.987]" in html


def test_the_same_data_gives_the_same_bytes() -> None:
    assert page()[0] == page()[0]


def test_ids_of_several_plots_do_not_clash() -> None:
    html, _ = page()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_terminal_table_fits_and_stars_the_best() -> None:
    _, rows = page()
    text = report.table(rows)
    assert max(len(line) for line in text.splitlines()) <= 100
    starred = [line for line in text.splitlines() if line.startswith("  good") and "*" in line]
    assert len(starred) == 3


def test_a_system_without_a_stratum_is_left_out_there_alone() -> None:
    _, rows = page()
    rows["good"].pop("random")
    made = report.Report(title="t", question="q", headline="h", rows=rows)
    assert report.table(rows).count("  good") == 2 and report.render(made).count("<td>good</td>") == 2


def test_two_plots_of_one_kind_share_no_ids_and_names_are_shown_as_they_are() -> None:
    labels = np.asarray([0, 1, 0, 1])
    names = ["costs $5_{ or $6", 'id="x"']
    drawn = [decision_plots.roc({name: (labels, np.linspace(0, 1, 4))}) for name in names]
    ids = [set(re.findall(r'\bid="([^"]+)"', re.sub(r">[^<]*<", "><", svg))) for svg in drawn]
    assert ids[0] and not ids[0] & ids[1]
    assert all(f">{name}<" in svg for name, svg in zip(names, drawn, strict=True))


def test_a_constant_prediction_is_one_point_of_the_reliability_plot() -> None:
    labels = np.asarray([1] * 30 + [0] * 70)
    constant, spread = (
        decision_plots.reliability({"c": (labels, p)}) for p in (np.full(100, 0.3), np.linspace(0, 1, 100))
    )
    assert spread.count("<use ") - constant.count("<use ") == metrics.NUM_BINS - 1
