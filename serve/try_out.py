"""Deploy the matcher, ask it one real question over HTTP, and take it away again; other services go on.

python -m serve.try_out serve/experiments/demo.toml [key=value ...]
"""

import hashlib
import json
import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow.compute as pc
import ray
from pydantic import Field
from ray import serve as ray_serve
from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client  # the public API tells neither whether Serve runs nor where it listens

from quire import artifact, config
from quire.artifact import Artifact
from quire.errors import UserError


class TryOutRuntime(config.Runtime):
    host: str = Field(default="127.0.0.1", description="where Serve listens, if it does not run yet")
    port: int | None = Field(default=None, gt=0, lt=65536, description="default: a free one, or a running Serve's")
    timeout: float = Field(default=120.0, gt=0, description="seconds for the one request")


class TryOutConfig(config.Config):
    """What `serve.try_out` asks: a positive pair."""

    name: str
    matcher: str
    chunks: str
    pairs: str
    split: Literal["test", "validation"] = Field(default="test", description="that the pair is of")
    runtime: TryOutRuntime = TryOutRuntime()


CONFIG = TryOutConfig
QUIET = {"log_level": "WARNING", "enable_access_log": False}  # one question needs no record of every step to its answer


def run(settings: TryOutConfig) -> Artifact:
    """Make the `reports` artefact with the request and the answer."""
    root = settings.runtime.root
    inputs = {
        "matcher": artifact.open_artifact(root, "models", settings.matcher),
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "pairs": artifact.open_artifact(root, "pairs", settings.pairs),
    }
    draft = artifact.begin_step(settings, "reports", inputs)
    if draft.published:
        return draft.published
    question, same = _question(inputs["chunks"], inputs["pairs"], settings.split)
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


def _question(chunks: Artifact, pairs: Artifact, split: str) -> tuple[dict[str, str], bool]:
    """A typical pair: two passages of one book of a split, at the middle of all distances. The farthest would be its
    title page and its end."""
    table = pairs.read(["split", "chunk_a", "chunk_b", "label", "distance"])
    table = table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["label"], 1)))
    table = table.sort_by([("distance", "descending"), ("chunk_a", "ascending")])
    pair = table.slice(table.num_rows // 2, 1).to_pylist()[0]
    texts = chunks.read(["chunk_id", "text"])
    places = [pc.index(texts["chunk_id"], pair[side]).as_py() for side in ("chunk_a", "chunk_b")]
    a, b = (" ".join(texts["text"][place].as_py().split()) for place in places)
    return {"a": a, "b": b}, True


def ask(matcher: str, question: dict[str, Any], runtime: TryOutRuntime) -> dict[str, Any]:
    """One answer over HTTP from the application, deployed for this request under a name and a route of its own.

    The name is the question's: what a killed try-out has left on a running Serve, the next one takes away. It reserves
    no CPU: one question must not wait for one that a service, or nobody yet, holds.
    """
    from serve.app import MatcherArgs, build  # here, so that the flow can check its configs before models load

    if not ray.is_initialized():
        ray.init(log_to_driver=True, logging_level="WARNING")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    name = application_name(matcher, question)
    with _serving(runtime) as address:
        try:
            if name in ray_serve.status().applications:
                ray_serve.delete(name)
            application = build(MatcherArgs(matcher=matcher, num_cpus=0))
            ray_serve.run(application, name=name, route_prefix=f"/{name}", logging_config=QUIET)
            return _post(f"{address}/{name}/v1/match", question, runtime.timeout)
        finally:
            ray_serve.delete(name)


def application_name(matcher: str, question: dict[str, Any]) -> str:
    """What a matcher is deployed as to be asked one question."""
    return f"try-out-{hashlib.sha256(json.dumps([matcher, question]).encode()).hexdigest()[:12]}"


@contextmanager
def _serving(runtime: TryOutRuntime) -> Iterator[str]:
    """The address of Serve's HTTP proxy: of the Serve that the cluster runs already, which is left as it is, or of one
    that is started here and shut down afterwards, unless somebody has deployed on it meanwhile."""
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        yield _proxy_address(running, runtime)
        return
    port = runtime.port or _free_port(runtime.host)
    try:
        ray_serve.start(http_options={"host": runtime.host, "port": port}, logging_config=QUIET)
        yield f"http://{runtime.host}:{port}"
    finally:
        if not ray_serve.status().applications:
            ray_serve.shutdown()


def _proxy_address(running: ServeControllerClient, runtime: TryOutRuntime) -> str:
    """Where the running Serve listens. Raises UserError when that is nowhere, or not at the port that was asked for."""
    options, proxies = running.http_config, running.get_serve_details()["proxies"]
    if not proxies:
        raise UserError("Serve runs on this cluster without an HTTP proxy: start it with proxy_location EveryNode")
    if runtime.port not in (None, options.port):
        raise UserError(
            f"runtime.port = {runtime.port}: Serve runs on this cluster already, at port {options.port}; leave it out"
        )
    everywhere = options.host in ("0.0.0.0", "::")
    host = next(iter(proxies.values()))["node_ip"] if everywhere else options.host
    return f"{'https' if options.ssl_certfile else 'http'}://{host}:{options.port}"


def _post(url: str, question: dict[str, Any], timeout: float) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(question).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.loads(response.read())


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    config.main(CONFIG, run)
