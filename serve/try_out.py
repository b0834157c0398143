"""Start the matcher's service, ask it one real question over HTTP, and stop it.

python -m serve.try_out serve/experiments/demo.toml [key=value ...]
"""

import json
import socket
import urllib.request
from typing import Any

import pyarrow.compute as pc
import ray
from pydantic import Field
from ray import serve as ray_serve

from quire import artifact, config
from quire.artifact import Artifact


class TryOutRuntime(config.Runtime):
    host: str = "127.0.0.1"
    port: int | None = Field(default=None, gt=0, lt=65536, description="default: a free one")
    timeout: float = Field(default=120.0, gt=0, description="seconds for the one request")


class TryOutConfig(config.Config):
    """What `serve.try_out` asks: a positive pair of the test split."""

    name: str
    matcher: str
    chunks: str
    pairs: str
    runtime: TryOutRuntime = TryOutRuntime()


CONFIG = TryOutConfig


def run(settings: TryOutConfig) -> Artifact:
    """Make the `reports` artefact with the request and the answer."""
    root = settings.runtime.root
    inputs = {
        "matcher": artifact.open_artifact(root, "models", settings.matcher),
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "pairs": artifact.open_artifact(root, "pairs", settings.pairs),
    }
    draft = artifact.begin(root, "reports", settings.name, recipe=config.recipe(settings), inputs=inputs)
    if draft.published:
        return draft.published
    question, same = _question(inputs["chunks"], inputs["pairs"])
    answer = ask(_matcher_uri(root, inputs["matcher"]), question, settings.runtime)
    exchange = {"request": question, "answer": answer, "same_book_in_truth": same}
    draft.storage.write_json(f"{draft.folder}/exchange.json", exchange)
    shown = {key: value if len(value) < 70 else f"{value[:67]}..." for key, value in question.items()}
    asked = json.dumps(shown, ensure_ascii=False)
    summary = f"POST /v1/match {asked}\n200 {json.dumps(answer)}\n(the same book in truth: {same})"
    return draft.publish(summary=summary)


def _matcher_uri(root: str, matcher: Artifact) -> str:
    """The artefact's address, with the query part of an s3:// root, if any, behind it."""
    base, _, query = matcher.storage.root.partition("?")
    return f"{base}/{matcher.folder}" + (f"?{query}" if query else "")


def _question(chunks: Artifact, pairs: Artifact) -> tuple[dict[str, str], bool]:
    """Two passages that lie far apart in one test book."""
    table = pairs.read(["split", "chunk_a", "chunk_b", "label", "distance"])
    table = table.filter(pc.and_(pc.equal(table["split"], "test"), pc.equal(table["label"], 1)))
    pair = table.sort_by([("distance", "descending"), ("chunk_a", "ascending")]).slice(0, 1).to_pylist()[0]
    texts = chunks.read(["chunk_id", "text"])
    places = [pc.index(texts["chunk_id"], pair[side]).as_py() for side in ("chunk_a", "chunk_b")]
    a, b = (" ".join(texts["text"][place].as_py().split()) for place in places)
    return {"a": a, "b": b}, True


def ask(matcher: str, question: dict[str, Any], runtime: TryOutRuntime) -> dict[str, Any]:
    """Start the application on its own port, send one request, stop it again."""
    from serve.app import MatcherArgs, build  # here, so that the flow can check its configs before models load

    port = runtime.port or _free_port(runtime.host)
    if not ray.is_initialized():
        ray.init(log_to_driver=True, logging_level="WARNING")
    ray_serve.start(http_options={"host": runtime.host, "port": port})
    try:
        ray_serve.run(build(MatcherArgs(matcher=matcher)), name="try-out", route_prefix="/")
        body = json.dumps(question).encode()
        request = urllib.request.Request(
            f"http://{runtime.host}:{port}/v1/match", data=body, headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=runtime.timeout) as response:
            return json.loads(response.read())
    finally:
        ray_serve.shutdown()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    config.main(CONFIG, run)
