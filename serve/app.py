"""The matcher over HTTP: bi-encoder and cross-encoder as deployments, an ingress that decides.

    serve run serve.app:build matcher=artifacts/models/demo-matcher
    serve deploy serve/config.yaml

POST /v1/match takes {"a": ..., "b": ...} and answers one result, or {"pairs": [{"a", "b"}, ...]} and answers
{"model": ..., "results": [...]}. GET /healthz, OpenAPI at /docs and /openapi.json.
"""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from swagger_ui_bundle import swagger_ui_path

from quire import matcher
from quire.matcher import MatcherSpec
from quire.style import style_features
from serve.checks import Pair, RequestError, Result, Results, parse, read_body, validate

DOCS_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")  # served here: no other host is asked
BATCHES = 2  # concurrent batches a replica may hold; its queue must have room for both
CONSTRUCTOR_RETRIES = 3  # Serve's 20 would repeat a wrong address for minutes before they tell it


class MatcherArgs(BaseModel):
    """Arguments of the application, as in serve/config.yaml."""

    model_config = ConfigDict(extra="forbid")

    matcher: str = Field(description="address of the published matcher: <root>/models/<name>, local or s3://")
    max_pairs: int = Field(default=64, gt=0, description="pairs a request")
    max_chars: int = Field(default=200_000, gt=0, description="characters a text")
    max_body_bytes: int = Field(default=4 * 2**20, gt=0)
    batch_size: int = Field(default=16, gt=0, description="texts or pairs a model call")
    batch_wait: float = Field(default=0.01, ge=0, description="seconds a batch waits for company")
    num_replicas: int = Field(default=1, gt=0, description="of each model")
    num_cpus: float = Field(default=1, ge=0, description="of each model's replica")
    num_gpus: float = Field(default=0, ge=0, description="of each model's replica")


class BiEncoderModel:
    """Stage one: embeddings of texts."""

    def __init__(self, uri: str, batch_size: int, batch_wait: float):
        from quire.bi_encoder import BiEncoder

        self.model = BiEncoder.load(matcher.open_model(uri, "bi_encoder"))
        self.embed.set_max_batch_size(batch_size)
        self.embed.set_batch_wait_timeout_s(batch_wait)

    @ray_serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01, max_concurrent_batches=BATCHES)
    async def embed(self, texts: list[str]) -> list[np.ndarray]:
        """One embedding (D,) a text; the model runs beside the event loop, so that the replica stays responsive."""
        return list(await asyncio.to_thread(self.model.encode, texts))

    async def logits(self, embeddings: tuple, features: tuple) -> np.ndarray:
        """Logits (m, n) of all passage pairs of two texts."""
        return matcher.pair_logits(self.model, embeddings, features)

    def check_health(self) -> None:
        """Raises when the model no longer gives finite numbers."""
        if not np.isfinite(self.model.encode(["Is anybody there?"])).all():
            raise RuntimeError("the bi-encoder gives embeddings that are not finite")


class CrossEncoderModel:
    """Stage two: logits of pairs."""

    def __init__(self, uri: str, batch_size: int, batch_wait: float):
        from quire.cross_encoder import CrossEncoder

        self.model = CrossEncoder.load(matcher.open_model(uri, "cross_encoder"))
        self.score.set_max_batch_size(batch_size)
        self.score.set_batch_wait_timeout_s(batch_wait)

    @ray_serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01, max_concurrent_batches=BATCHES)
    async def score(self, pairs: list[tuple[str, str]]) -> list[float]:
        """One logit a pair, whichever way round it came."""
        return (await asyncio.to_thread(self.model.logits, pairs)).tolist()

    def check_health(self) -> None:
        """Raises when the model no longer gives finite numbers."""
        if not np.isfinite(self.model.logits([("Is anybody there?", "Nobody.")])).all():
            raise RuntimeError("the cross-encoder gives logits that are not finite")


app = FastAPI(title="Quire", description="Do two passages come from the same book?", docs_url=None, redoc_url=None)


@app.exception_handler(RequestError)
async def refuse(request: Request, error: RequestError) -> JSONResponse:
    """Every refusal has one shape: the field and what is wrong with it."""
    return JSONResponse({"error": {"field": error.field, "message": error.message}}, status_code=error.status)


@ray_serve.ingress(app)
class Ingress:
    """Checks requests, asks the models, decides."""

    def __init__(self, args: MatcherArgs, bi: DeploymentHandle, cross: DeploymentHandle):
        self.args, self.bi, self.cross = args, bi, cross
        self.spec: MatcherSpec = matcher.open_spec(args.matcher)

    @app.post(
        "/v1/match",
        response_model=Result | Results,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "anyOf": [
                                Pair.model_json_schema(),
                                {
                                    "type": "object",
                                    "required": ["pairs"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "pairs": {"type": "array", "items": Pair.model_json_schema(), "minItems": 1}
                                    },
                                },
                            ]
                        }
                    }
                },
            },
            "responses": {
                str(code): {"description": text}
                for code, text in {
                    400: "Not JSON, or not UTF-8",
                    413: "Too large: the body, a text, or the list",
                    422: "A field is wrong",
                }.items()
            },
        },
    )
    async def match(self, request: Request) -> Any:
        """Do the two passages of each pair come from the same book? One pair, or a list of pairs."""
        body = parse(await read_body(request, self.args.max_body_bytes))
        single = "pairs" not in body
        pairs = validate(body, single, self.args.max_pairs, self.args.max_chars)
        results = await self.answer(pairs)
        return results[0] if single else Results(model=self.spec.fingerprint, results=results)

    async def answer(self, pairs: list[Pair]) -> list[Result]:
        """One result a pair. Each distinct passage of the request is embedded once."""
        texts = [matcher.ordered(pair.a, pair.b) for pair in pairs]
        passages = {text: matcher.passages(text, self.spec) for pair in texts for text in pair}
        distinct = list(dict.fromkeys(p for group in passages.values() for p in group))
        vectors = await asyncio.gather(*(self.bi.embed.remote(passage) for passage in distinct))
        embedding = dict(zip(distinct, vectors, strict=True))
        ordered = await asyncio.gather(*(self._one(passages[a], passages[b], embedding) for a, b in texts))
        results = []
        for pair, found in zip(pairs, ordered, strict=True):
            counts = len(passages[pair.a]), len(passages[pair.b])
            results.append(Result(**asdict(found), num_passages_a=counts[0], num_passages_b=counts[1]))
        return results

    async def _one(self, a: list[str], b: list[str], embedding: dict[str, np.ndarray]) -> matcher.Match:
        embeddings = tuple(np.stack([embedding[p] for p in side]) for side in (a, b))
        features = style_features(a), style_features(b)
        bi_logit = float((await self.bi.logits.remote(embeddings, features)).mean())
        if not matcher.needs_cross(self.spec, bi_logit):
            return matcher.decide(self.spec, bi_logit, None)
        chosen = matcher.cross_pairs(len(a), len(b), self.spec.max_cross_pairs)
        logits = await asyncio.gather(*(self.cross.score.remote((a[i], b[j])) for i, j in chosen))
        return matcher.decide(self.spec, bi_logit, float(np.mean(logits)))

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """200 when both models answer."""
        await asyncio.gather(self.bi.embed.remote("healthy"), self.cross.score.remote(("healthy", "healthy")))
        return {"status": "ok", "model": self.spec.fingerprint}

    @app.get("/docs", include_in_schema=False)
    async def docs(self) -> HTMLResponse:
        """The OpenAPI page."""
        script, style, icon = (f"/docs/{file}" for file in DOCS_FILES)
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Quire",
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
        )

    @app.get("/docs/{file}", include_in_schema=False)
    async def docs_file(self, file: str) -> FileResponse:
        """What the OpenAPI page is made of."""
        if file not in DOCS_FILES:
            raise RequestError(404, "path", f"/docs/{file}: there is /docs alone")
        return FileResponse(Path(swagger_ui_path) / file)


def build(args: MatcherArgs) -> Application:
    """The application: `serve run serve.app:build matcher=...`.

    A local matcher is looked for from where this runs: the caller's folder with `serve run`, a worker's with a config.
    """
    args = args.model_copy(update={"matcher": matcher.absolute(args.matcher)})
    options = {
        "num_replicas": args.num_replicas,
        "max_constructor_retry_count": CONSTRUCTOR_RETRIES,
        # Fewer would keep batches from filling: Serve counts queued calls against it.
        "max_ongoing_requests": args.batch_size * BATCHES * 2,
        "ray_actor_options": {"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
    }
    arguments = (args.matcher, args.batch_size, args.batch_wait)
    bi = ray_serve.deployment(BiEncoderModel, name="BiEncoder", **options).bind(*arguments)
    cross = ray_serve.deployment(CrossEncoderModel, name="CrossEncoder", **options).bind(*arguments)
    ingress = ray_serve.deployment(
        Ingress,
        name="Ingress",
        max_ongoing_requests=100,
        max_constructor_retry_count=CONSTRUCTOR_RETRIES,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(args, bi, cross)
