"""Fetching books, books/s: Quire's harvest beside a plain sequential and a plain asyncio client at the same politeness.

    python -m bench.fetch [--books 1500] [--rate 100] [--latency 0.05] [--rounds 3] [--workers 2]

One server on loopback answers every request after `latency` seconds; all keep to `rate` requests a second, which is
more than any public host should be asked for, or else everybody would only be waiting. The plain clients are what a
user writes: one after another with a pause; or `gather` under a semaphore as wide as Quire's, with a pause before each
start. They write the bytes and no more: no check, no hash, no record, no retry. Quire's time includes the start of its
actors, not that of Ray; `--workers 0` harvests in this process and starts no Ray.
"""

import asyncio
import http.server
import multiprocessing
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx

from bench.contest import contest, options
from pipelines.harvest import Plan, fetch_all
from quire.fetch import Limits
from quire.harvest import Harvest, Shelf, Wanted, hosts_of, urls_of
from quire.pace import Pace
from quire.storage import Storage

CONCURRENCY = 8  # of each worker
BODY = b"It was the best of times, it was the worst of times, and it was told at some length.\n" * 4_500  # 380 kB


def serve(latency: float, ready: Any) -> None:
    """Every book, after a while; in a process of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(latency)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_: object) -> None:
            """Nothing: a line a request would be part of what is measured."""

    class Listener(http.server.ThreadingHTTPServer):
        request_queue_size = 128

    listener = Listener(("127.0.0.1", 0), Handler)
    ready.send(listener.server_address[1])
    listener.serve_forever()


def quire_speed(base: str, books: int, rate: float, workers: int) -> float:
    wanted = [Wanted(f"pg{number}", urls_of(number, [base])) for number in range(1, books + 1)]
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Storage(folder), "records", "raw")
        hosts = tuple(hosts_of(wanted[0].urls))
        plan = Plan(shelf=shelf, limits=Limits(), agent="bench", hosts=hosts, max_bytes=2**24)
        started = time.perf_counter()
        if workers:
            fetch_all(wanted, plan, rate=rate, concurrency=CONCURRENCY, num_workers=workers)
        else:
            asyncio.run(_fetch_here(wanted, plan, rate))
        seconds = time.perf_counter() - started
        assert len(list(Path(folder, "raw").iterdir())) == books
    return books / seconds


async def _fetch_here(wanted: list[Wanted], plan: Plan, rate: float) -> None:
    async with plan.client(Pace(rate), CONCURRENCY) as client:
        await asyncio.gather(*map(Harvest(client, plan.shelf).settle, wanted))


def sequential_speed(base: str, books: int, rate: float) -> float:
    with tempfile.TemporaryDirectory() as folder, httpx.Client() as client:
        started = time.perf_counter()
        for number in range(1, books + 1):
            begun = time.perf_counter()
            body = client.get(urls_of(number, [base])[0]).content
            Path(folder, f"{number}.txt").write_bytes(body)
            time.sleep(max(0.0, 1 / rate - (time.perf_counter() - begun)))
        return books / (time.perf_counter() - started)


def asyncio_speed(base: str, books: int, rate: float, workers: int) -> float:
    async def run(folder: str) -> None:
        gate = asyncio.Semaphore(max(1, workers) * CONCURRENCY)
        async with httpx.AsyncClient() as client:

            async def one(number: int) -> None:
                await asyncio.sleep((number - 1) / rate)
                async with gate:
                    body = (await client.get(urls_of(number, [base])[0])).content
                Path(folder, f"{number}.txt").write_bytes(body)

            await asyncio.gather(*(one(number) for number in range(1, books + 1)))

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        asyncio.run(run(folder))
        return books / (time.perf_counter() - started)


def main() -> None:
    asked = options(__doc__, books=1500, rate=100.0, latency=0.05, rounds=3, workers=2)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=serve, args=(asked.latency, there), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{here.recv()}/cache/epub"
    try:
        if asked.workers:
            import ray

            ray.init(log_to_driver=False, logging_level="WARNING")
        width = f"{asked.workers} x {CONCURRENCY}" if asked.workers else f"{CONCURRENCY}, no Ray"
        contenders = {
            f"quire harvest, {width}": partial(quire_speed, base, asked.books, asked.rate, asked.workers),
            "asyncio client": partial(asyncio_speed, base, asked.books, asked.rate, asked.workers),
            "sequential client": partial(sequential_speed, base, asked.books, asked.rate),
        }
        facts = {"books": asked.books, "rate": asked.rate, "latency": asked.latency, "workers": asked.workers}
        contest("fetch", "books", contenders, asked.rounds, **facts)
    finally:
        server.kill()


if __name__ == "__main__":
    main()
