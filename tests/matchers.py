"""A matcher with tiny real models, calibrated by hand, for the tests of what answers with one."""

from pathlib import Path
from typing import Any

import torch
from tiny import book

from quire import calibration, certify, hub, levels, matcher, views
from quire.bi_encoder import BiEncoder, PairHead, build_encoder
from quire.cross_encoder import CrossEncoder, build_model
from quire.storage import Storage

A, B = book("sea", "alpha", 20), book("war", "beta", 20, seed=1)
SHORT = "The ship was at sea and the crew was on deck."
LEVELS = {1: (1.0, 0.1), 2: (1.5, 0.2), 3: (2.0, -0.3)}  # k -> slope of the first stage, bias of the second


def level(k: int, prefilter: float, certificates: tuple = ()) -> levels.Level:
    slope, bias = LEVELS[k]
    return levels.Level(
        k=k,
        bi_scale=calibration.Scale(slope, 0.0),
        fusion=calibration.Fusion(1.0, 0.5, bias),
        prefilter=prefilter,
        threshold=0.5,
        calibration_prior=0.5,
        num_calibration_pairs=100 * k,
        certificates=certificates,
    )


def publish_matcher(
    root: Path, encoder_folder: str, prefilter: float, *, certificates: tuple = (), k: tuple = (1, 2, 3), **changes: Any
) -> str:
    """A matcher with tiny real models, certified at its first level, and what else its spec may say; its address."""
    torch.manual_seed(1)
    fitted = views.Views.fit([A, B])
    head = PairHead(32, num_features=len(fitted.feature_names))
    torch.nn.init.normal_(head.feature_weight)
    bi = BiEncoder(build_encoder(encoder_folder, pooling="mean", max_seq_length=64), head, fitted)
    bi.save(root / "models" / "bi")
    cross = CrossEncoder(build_model(encoder_folder, 64))
    cross.save(root / "models" / "cross")
    spec = matcher.make_spec(
        evidence=levels.EVIDENCE,
        bi_encoder="models/bi",
        cross_encoder="models/cross",
        bi_encoder_sha256=hub.weights_sha256(root / "models/bi"),
        cross_encoder_sha256=hub.weights_sha256(root / "models/cross"),
        levels=tuple(level(number, prefilter, certificates if number == 1 else ()) for number in k),
        size=6,
        overlap=2,
        min_chars=100,
        max_cross_pairs=2,
        **{"objective": "accuracy"} | changes,
    )
    Storage(str(root)).write_json("models/m/matcher.json", matcher.spec_dict(spec))
    return str(root / "models" / "m")


def certificate(side: str, threshold: float | None) -> certify.Certificate:
    return certify.Certificate(side, 0.9, 0.95, "author", 0.5, threshold, 0.91, 60, 59, 100, 100)
