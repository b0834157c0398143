"""The matcher over HTTP: bi-encoder and cross-encoder as deployments, an ingress that decides.

    serve run serve.app:build matcher=artifacts/models/demo-matcher
    serve deploy serve/config.yaml

POST /v1/match takes {"a": ..., "b": ...} and answers one result, or {"pairs": [{"a", "b"}, ...]} and answers
{"model": ..., "results": [...]}. GET /livez (the process answers), GET /healthz (the models answer), OpenAPI at /docs
and /openapi.json. GET /v1/matcher: what the calibration rests on, and what it certifies.
"""

import asyncio
from collections.abc import Sequence
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

from quire import levels, matcher
from quire.levels import Question
from quire.matcher import MatcherSpec, needs_cross
from quire.views import Rows
from serve.checks import Admission, Pair, RequestError, Result, Results, check_cost, parse, read_body, validate
from serve.schema import DESCRIPTION, OPENAPI, Matcher

DOCS_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")  # served here: no other host is asked
BATCHES = 2  # concurrent batches a replica may hold; its queue must have room for both
CONSTRUCTOR_RETRIES = 3  # Serve's 20 would repeat a wrong address for minutes before they tell it
HEALTH_TIMEOUT = 10  # seconds after which busy models count as unhealthy
# Requests that the ingress holds, those included that are still being read, checked or refused. Every match beyond
# max_requests is refused at once, so there is always room for a health check.
MAX_HELD = 200


class MatcherArgs(BaseModel):
    """Arguments of the application, as in serve/config.yaml."""

    model_config = ConfigDict(extra="forbid")

    matcher: str = Field(description="address of the published matcher: <root>/models/<name>, local or s3://")
    max_pairs: int = Field(default=64, gt=0, description="pairs a request")
    max_chars: int = Field(default=2_000_000, gt=0, description="characters a text; only its cutting grows with them")
    max_body_bytes: int = Field(default=4 * 2**20, gt=0)
    max_passages: int = Field(
        default=256,
        gt=0,
        description="different passages that a request has the models read; of a text at most the k of the last level",
    )
    max_cross_pairs: int = Field(default=128, gt=0, description="passage pairs a request for the cross-encoder")
    max_requests: int = Field(default=64, gt=0, description="requests in work at once; more are answered 503")
    request_timeout: float = Field(default=60.0, gt=0, description="seconds a request may take, its reading included")
    batch_size: int = Field(default=16, gt=0, description="texts or pairs a model call")
    batch_wait: float = Field(default=0.01, ge=0, description="seconds a batch waits for company")
    prior: float | None = Field(
        default=None, gt=0, lt=1, description="share of same-book pairs where it is used; default: the matcher's own"
    )
    num_replicas: int = Field(default=1, gt=0, description="of each model")
    num_cpus: float = Field(default=1, ge=0, description="of each model's replica")
    num_gpus: float = Field(default=0, ge=0, description="of each model's replica")


class BiEncoderModel:
    """Stage one: embeddings and views of texts, and logits of pairs from them."""

    def __init__(self, uri: str, batch_size: int, batch_wait: float):
        from quire.bi_encoder import BiEncoder

        self.model = BiEncoder.load(matcher.open_model(uri, "bi_encoder"))
        self.embed.set_max_batch_size(batch_size)
        self.embed.set_batch_wait_timeout_s(batch_wait)

    @ray_serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01, max_concurrent_batches=BATCHES)
    async def embed(self, texts: list[str]) -> list[tuple[np.ndarray, Rows]]:
        """One embedding (D,) a text, and its views; the model runs beside the event loop, so that the replica stays
        responsive."""
        return await asyncio.to_thread(self._read, texts)

    def _read(self, texts: list[str]) -> list[tuple[np.ndarray, Rows]]:
        rows = self.model.rows(texts)
        return [(vector, rows[[place]]) for place, vector in enumerate(self.model.encode(texts))]

    async def evidence(self, pairs: list[tuple[tuple, tuple]]) -> list[tuple[np.ndarray, float]]:
        """Logits (k, k) of all cells of pairs of texts, each given as embeddings ((k, D), (k, D)) and views' rows, and
        what they say together."""
        return await asyncio.to_thread(lambda: [self.model.evidence(*pair) for pair in pairs])

    def check_health(self) -> None:
        """Raises when the model no longer gives finite numbers."""
        if not np.isfinite(self.model.score(["Is anybody there?"], ["Nobody."])).all():
            raise RuntimeError("the bi-encoder gives logits that are not finite")


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


app = FastAPI(title="Quire", description=DESCRIPTION, docs_url=None, redoc_url=None)


@app.exception_handler(RequestError)
async def refuse(request: Request, error: RequestError) -> JSONResponse:
    """Every refusal has one shape: the field and what is wrong with it."""
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    content = {"error": {"field": error.field, "message": error.message}}
    return JSONResponse(content, status_code=error.status, headers=headers)


@ray_serve.ingress(app)
class Ingress:
    """Checks requests, asks the models, decides."""

    def __init__(self, args: MatcherArgs, bi: DeploymentHandle, cross: DeploymentHandle | None):
        self.args, self.bi, self.cross = args, bi, cross
        self.spec: MatcherSpec = matcher.open_spec(args.matcher)
        matcher.check_prior(self.spec, args.prior)  # a prior that the matcher cannot have is told at the start
        self.admission = Admission(args.max_requests)

    @app.post("/v1/match", response_model=Result | Results, openapi_extra=OPENAPI)
    async def match(self, request: Request) -> Any:
        """Do the two texts of each pair, passages to whole books, come from the same book? One pair, or a list."""
        try:
            async with asyncio.timeout(self.args.request_timeout):
                body = parse(await read_body(request, self.args.max_body_bytes))
                single = "pairs" not in body
                pairs = validate(body, single, self.args.max_pairs, self.args.max_chars)
                with self.admission:
                    results = await self.answer(pairs, "body" if single else "pairs")
        except TimeoutError as error:
            limit = f"not answered within request_timeout = {self.args.request_timeout:g} s"
            raise RequestError(504, "body", limit) from error
        return results[0] if single else Results(model=self.spec.fingerprint, results=results)

    async def answer(self, pairs: list[Pair], field: str) -> list[Result]:
        """One result a pair. What a request asks twice, a passage or a pair either way round, is computed once, so
        that within a request (a, b) and (b, a) agree to the last bit. Between requests they agree to rounding: a
        model's last bits depend on what else is in its batch (and where two cells' logits differ by no more, which of
        them the cross-encoder reads)."""
        asked = [matcher.ordered(pair.a, pair.b) for pair in pairs]
        distinct = list(dict.fromkeys(asked))
        texts = await asyncio.to_thread(self._cut, distinct)
        questions = [matcher.question(self.spec, texts[a], texts[b]) for a, b in distinct]
        passages = list(dict.fromkeys(p for question in questions for p in (*question.a, *question.b)))
        check_cost(field, "passages", len(passages), self.args.max_passages)
        sent = [level for level in (q.level for q in questions) if needs_cross(level.bi_scale, level.prefilter, np.inf)]
        most = [min(self.spec.max_cross_pairs, level.k**2) for level in sent]
        check_cost(field, "cross_pairs", sum(most), self.args.max_cross_pairs)
        said = await self._evidence(questions, passages)
        bi_logits = np.array([evidence for _, evidence in said])
        matches = matcher.decide(
            self.spec,
            bi_logits,
            await self._cross_logits(questions, [grid for grid, _ in said], bi_logits),
            k=[question.level.k for question in questions],
            prior=self.args.prior,
            calibrated=[question.calibrated for question in questions],
        )
        found = dict(zip(distinct, matches, strict=True))
        results = []
        for pair, order in zip(pairs, asked, strict=True):
            counts = {"num_passages_a": len(texts[pair.a]), "num_passages_b": len(texts[pair.b])}
            results.append(Result(**asdict(found[order]), **counts))
        return results

    def _cut(self, pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
        return {text: matcher.passages(text, self.spec) for text in dict.fromkeys(t for pair in pairs for t in pair)}

    async def _evidence(self, questions: list[Question], passages: list[str]) -> list[tuple[np.ndarray, float]]:
        """Logits (k, k) of the first stage for every cell of every question, and what they say together."""
        read = await asyncio.gather(*(self.bi.embed.remote(passage) for passage in passages))
        found = dict(zip(passages, read, strict=True))

        def of(question: Question) -> tuple[tuple, tuple]:
            sides = [[found[passage] for passage in side] for side in (question.a, question.b)]
            embeddings = tuple(np.stack([embedding for embedding, _ in side]) for side in sides)
            return embeddings, tuple(Rows.joined([rows for _, rows in side]) for side in sides)

        return await self.bi.evidence.remote([of(question) for question in questions])

    async def _cross_logits(
        self, questions: list[Question], grids: list[np.ndarray], bi_logits: np.ndarray
    ) -> np.ndarray:
        """Mean logits (n,) of the second stage over the cells that it reads, NaN for a pair that does not reach it."""
        chosen: dict[int, list[tuple[str, str]]] = {}
        for place, (question, grid) in enumerate(zip(questions, grids, strict=True)):
            level = question.level
            if needs_cross(level.bi_scale, level.prefilter, bi_logits[place]):
                cells = levels.cells(grid, self.spec.max_cross_pairs)
                chosen[place] = [matcher.ordered(question.a[i], question.b[j]) for i, j in cells]
        asked = list(dict.fromkeys(pair for pairs in chosen.values() for pair in pairs))
        scores = await asyncio.gather(*(self.cross.score.remote(pair) for pair in asked))
        score = dict(zip(asked, scores, strict=True))
        logits = np.full(len(questions), np.nan)
        for place, pairs in chosen.items():
            logits[place] = np.mean([score[pair] for pair in pairs])
        return logits

    @app.get("/v1/matcher")
    async def about(self) -> Matcher:
        """What answers: hashes, prior, and of each level the calibration's size and certificates."""
        return Matcher.of(self.spec, self.args.prior)

    @app.get("/livez")
    async def livez(self) -> dict[str, str]:
        """200 as long as the service takes requests, however busy the models are."""
        return {"status": "ok", "model": self.spec.fingerprint}

    @app.get("/healthz", responses={503: {"description": f"Not every model answered within {HEALTH_TIMEOUT} s"}})
    async def healthz(self) -> dict[str, str]:
        """200 when every model answers. It waits behind the requests in work; /livez does not."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                asked = [self.bi.embed.remote("healthy")]
                asked += [self.cross.score.remote(("healthy", "healthy"))] if self.cross else []
                await asyncio.gather(*asked)
        except TimeoutError as error:
            raise RequestError(503, "path", f"/healthz: no answer from every model in {HEALTH_TIMEOUT} s") from error
        return {"status": "ok", "model": self.spec.fingerprint}

    @app.get("/docs", include_in_schema=False)
    async def docs(self, request: Request) -> HTMLResponse:
        """The OpenAPI page."""
        root = request.scope.get("root_path", "").rstrip("/")  # the application's route prefix
        script, style, icon = (f"{root}/docs/{file}" for file in DOCS_FILES)
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
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


def _has_second_stage(uri: str) -> bool:
    """Whether the matcher asks a cross-encoder. One that is not there, or not to be reached from here, is taken to: a
    config may be checked before its matcher is made; the ingress tells at its start. One that is wrong is told here."""
    try:
        return not matcher.is_there(uri) or matcher.open_spec(uri).has_second_stage
    except OSError:
        return True


def build(args: MatcherArgs) -> Application:
    """The application: `serve run serve.app:build matcher=...`.

    A local matcher is looked for from where this runs: the caller's folder with `serve run`, a worker's with a config.
    """
    args = args.model_copy(update={"matcher": matcher.absolute(args.matcher)})
    options = {
        "num_replicas": args.num_replicas,
        "max_constructor_retry_count": CONSTRUCTOR_RETRIES,
        # Fewer would keep batches from filling: Serve counts queued calls against it. What waits for them is bounded by
        # what the ingress lets in.
        "max_ongoing_requests": args.batch_size * BATCHES * 2,
        "ray_actor_options": {"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
    }
    arguments = (args.matcher, args.batch_size, args.batch_wait)
    bi = ray_serve.deployment(BiEncoderModel, name="BiEncoder", **options).bind(*arguments)
    cross = None
    if _has_second_stage(args.matcher):
        cross = ray_serve.deployment(CrossEncoderModel, name="CrossEncoder", **options).bind(*arguments)
    ingress = ray_serve.deployment(
        Ingress,
        name="Ingress",
        max_ongoing_requests=MAX_HELD,
        max_queued_requests=MAX_HELD,  # Serve's proxy answers 503 to what comes beyond
        max_constructor_retry_count=CONSTRUCTOR_RETRIES,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(args, bi, cross)
