"""Artefacts: a folder of data with a manifest, published once, skipped, refused or resumed after that.

    <root>/<kind>/<name>/   part-00000.parquet | model.safetensors ...   manifest.json

A step calls `begin`. If the manifest is there with the same fingerprint, and the inputs have the content they had, the
work is done; else it is refused. With no manifest, an interrupted run left a draft, and its finished shards are kept; a
draft of another recipe gives way when nothing would be lost. `publish` writes the manifest last: it is the done marker.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from quire import config, ledger, many
from quire import manifest as manifests
from quire import storage as storages
from quire.errors import UserError
from quire.storage import Storage

KINDS = (
    "documents",
    "chunks",
    "embeddings",
    "index",
    "neighbors",
    "negatives",
    "pairs",
    "tokens",
    "models",
    "predictions",
    "sweeps",
    "reports",
)
MANIFEST = "manifest.json"
DRAFT = "_draft.json"
SHARDS = "_shards"
WORK = "_work"  # scratch of an unfinished run (checkpoints); removed when the artefact is published
FETCHED = "_fetched"  # what an unfinished run has brought near; stays when another recipe takes its place
_SCRATCH = (SHARDS, WORK, FETCHED, DRAFT)  # the draft goes last: while it is there, there may be more


def fingerprint(recipe: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of what determines the result: the recipe and the inputs' fingerprints."""
    text = json.dumps({"recipe": recipe, "inputs": inputs}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A published artefact: where it is, and its manifest."""

    storage: Storage
    kind: str
    name: str
    manifest: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Relative to the root."""
        return f"{self.kind}/{self.name}"

    @property
    def fingerprint(self) -> str:
        """Of the recipe and the inputs: what was asked for."""
        return self.manifest["fingerprint"]

    @property
    def content(self) -> str:
        """SHA-256 over the names and hashes of the files: what came out. Made again, it may be another."""
        digests = {name: facts["sha256"] for name, facts in self.manifest["files"].items()}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    def told(self, started: float) -> str:
        """For the terminal: what the step that began at `started` (seconds since the epoch) did, and its summary."""
        fresh = self.manifest["ended"] >= started
        how = f"done in {time.time() - started:.1f} s" if fresh else "already published, skipped"
        lines = [f"{how}: {self.storage.uri(self.folder)}", *self.manifest["summary"].splitlines()]
        lines += [f"cost {ledger.told(self.manifest['cost'])}"] if "money" in self.manifest["cost"] else []
        return "\n".join(f"      {line}" for line in lines)

    @property
    def parts(self) -> list[str]:
        """Parquet parts in order, relative to the root."""
        return [f"{self.folder}/{file}" for file in self.manifest["files"] if file.startswith("part-")]

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All parts as one table, in order."""
        return pa.concat_tables(self.storage.read_table(part, columns) for part in self.parts)

    def memory_map(self, columns: list[str]) -> pa.Table:
        """All parts as one table that lies on the local disk, not in memory, so that it may be larger than memory."""
        chosen = hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:8]

        def write(target: Path) -> None:
            writer = None
            for part in self.parts:
                table = self.storage.read_table(part, columns)
                writer = writer or pa.ipc.new_file(target, table.schema)
                writer.write_table(table)
            writer.close()

        with pa.memory_map(str(storages.made_once(f"{self._cache_key}-{chosen}.arrow", write))) as source:
            return pa.ipc.open_file(source).read_all()

    def local(self) -> Path:
        """The artefact's folder on this machine, downloaded first if it is remote.

        Raises UserError when a remote file is missing or has another length than the manifest says. Such a copy is not
        kept: made again, the artefact has the same key.
        """
        return storages.cached(self.storage, self.folder, self._cache_key, self._check_lengths)

    def local_file(self, name: str) -> Path:
        """`local` for one of the files alone."""
        key = f"{self.manifest['files'][name]['sha256'][:32]}{Path(name).suffix}"
        return storages.cached_file(self.storage, f"{self.folder}/{name}", key, partial(self._check_length, name))

    def _check_lengths(self, copy: Path) -> None:
        for name in self.manifest["files"]:
            self._check_length(name, copy / name)

    def _check_length(self, name: str, file: Path) -> None:
        stated = self.manifest["files"][name]["bytes"]
        found = f"{file.stat().st_size:,} bytes long" if file.exists() else "missing"
        if not file.exists() or file.stat().st_size != stated:
            raise UserError(
                f"{self.storage.uri(f'{self.folder}/{name}')}: {found}, its manifest says {stated:,} bytes; delete "
                f"{self.storage.uri(self.folder)} and run its step again"
            )

    @property
    def _cache_key(self) -> str:
        """By content: what stands under the same name, made again by the same recipe, may be something else."""
        return f"{self.kind}-{self.name}-{self.content[:24]}"

    def read_json(self, file: str) -> Any:
        return self.storage.read_json(f"{self.folder}/{file}")


def open_artifact(root: str | Storage, kind: str, name: str) -> Artifact:
    """The published artefact `kind/name`. Raises UserError when it is missing or unfinished."""
    storage = root if isinstance(root, Storage) else Storage(root)
    _check_name(kind, name)
    if not storage.exists(f"{kind}/{name}/{MANIFEST}"):
        unfinished = storage.exists(f"{kind}/{name}/{DRAFT}")
        why = "is unfinished: run its step again" if unfinished else "does not exist: run the step that makes it first"
        raise UserError(f"{kind} {name!r} ({storage.uri(f'{kind}/{name}')}) {why}")
    return Artifact(storage, kind, name, storage.read_json(f"{kind}/{name}/{MANIFEST}"))


@dataclass
class Shard:
    """What one shard of a step made, and what it dropped and why."""

    table: pa.Table | None = None
    rows_in: int = 0
    rejects: pa.Table | None = None  # must have a string column `reason`
    bytes_in: int = 0
    cpu: float = 0.0
    gpu: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    item: str = ""  # a hash of what the shard was made from, so that a resumed run knows it again
    rows_elsewhere: int = 0  # made, and not in `table`: written by the step itself

    @property
    def dropped(self) -> dict[str, int]:
        return {} if self.rejects is None else dict(sorted(Counter(self.rejects["reason"].to_pylist()).items()))


@dataclass(frozen=True)
class Draft:
    """An artefact in the making. Cheap to send to workers, which write their shards through it."""

    storage: Storage
    kind: str
    name: str
    fingerprint: str
    published: Artifact | None = None
    prices: Mapping[str, Any] | None = None  # of `config.Prices`
    driver_cpu: float = field(default_factory=time.process_time)  # seconds of this process when it began

    @property
    def folder(self) -> str:
        return f"{self.kind}/{self.name}"

    def given_up(self, message: str) -> UserError:
        """The error to raise when a run cannot end well by its recipe: from now on another recipe takes its place."""
        name = f"{self.folder}/{DRAFT}"
        self.storage.write_json(name, self.storage.read_json(name) | {"given_up": True})
        return UserError(message)

    def settle(self, key: str, decide: Callable[[], Any]) -> Any:
        """What `decide` says, as JSON; a run that goes on finds what the first one decided.

        For what the machine at hand decides, which two runs of one recipe may decide differently.
        """
        name = f"{self.folder}/{DRAFT}"
        draft = self.storage.read_json(name)
        if key not in draft.get("settled", {}):
            draft["settled"] = draft.get("settled", {}) | {key: decide()}
            self.storage.write_json(name, draft)
        return draft["settled"][key]

    def finished_shards(self) -> dict[int, dict[str, Any]]:
        """Records of the shards that this or an interrupted run has completed, by index.

        Each is read once, and again when this draft has written it again. Whoever deletes records does so before any
        is read.
        """
        names = {int(name.split(".")[0]): name for name in self.storage.files(f"{self.folder}/{SHARDS}")}
        new = [index for index in names if index not in self._records]
        paths = [f"{self.folder}/{SHARDS}/{names[index]}" for index in new]
        read = many.each(self.storage.read_json, paths, "records of shards read", num_threads=16)
        self._records.update(zip(new, read, strict=True))
        return {index: self._records[index] for index in names}

    @cached_property
    def _records(self) -> dict[int, dict[str, Any]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_records"}

    def has_shard(self, index: int) -> bool:
        """Whether this or an interrupted run has completed the shard."""
        return self.storage.exists(f"{self.folder}/{SHARDS}/{index:05d}.json")

    def totals(self) -> dict[str, Any]:
        """`manifest.totals` of the finished shards."""
        return manifests.totals(self.finished_shards().values())

    def write_shard(self, index: int, shard: Shard) -> dict[str, Any]:
        """Write one shard: data first, its record last. Doing it again writes the same bytes over the same names."""
        written = 0
        if shard.table is not None:
            written += self.storage.write_table(f"{self.folder}/part-{index:05d}.parquet", shard.table)
        if shard.rejects is not None and shard.rejects.num_rows:
            self.storage.write_table(f"{self.folder}/rejects-{index:05d}.parquet", shard.rejects)
        record = {
            "rows_in": shard.rows_in,
            "rows_out": shard.rows_elsewhere + (0 if shard.table is None else shard.table.num_rows),
            "dropped": shard.dropped,
            "bytes_in": shard.bytes_in,
            "bytes_out": written,
            "cpu": round(shard.cpu, 3),
            "gpu": round(shard.gpu, 3),
            "facts": shard.facts,
            "item": shard.item,
        }
        self.storage.write_json(f"{self.folder}/{SHARDS}/{index:05d}.json", record)
        self._records.pop(index, None)
        return record

    def publish(
        self,
        *,
        num_shards: int | None = None,
        summary: str = "",
        facts: Mapping[str, Any] | None = None,
        cost: Mapping[str, float] | None = None,
    ) -> Artifact:
        """Write the manifest, after checking that every shard is there, and clear the scratch.

        Raises UserError when a shard is missing: a step that lost work never looks finished.
        """
        records = self.finished_shards()
        missing = sorted(set(range(num_shards or 0)) - set(records))
        if missing:
            raise UserError(f"{self.folder}: {len(missing)} of {num_shards} shards are missing, first {missing[0]}")
        draft = self.storage.read_json(f"{self.folder}/{DRAFT}")
        draft.pop("given_up", None)
        if any(name.startswith("part-") for name in self.storage.files(self.folder)):
            self.storage.write_bytes(f"{self.folder}/README.md", manifests.CARD.format(kind=self.kind).encode())
        files = [name for name in self.storage.files(self.folder) if name.split("/")[0] not in _SCRATCH]
        ended = time.time()
        manifest = {
            **draft,
            "kind": self.kind,
            "name": self.name,
            "files": dict(zip(files, many.each(self._describe, files, "files hashed"), strict=True)),
            **manifests.totals(records.values()),
            "facts": dict(facts or {}),
            "summary": summary,
            "git_commit": manifests.git_commit(),
            "versions": manifests.versions(),
            "ended": ended,
        }
        manifest["cost"] |= {"wall": round(ended - draft["started"], 3), **(cost or {})}
        manifest["cost"]["cpu"] = round(manifest["cost"]["cpu"] + time.process_time() - self.driver_cpu, 3)
        manifest["cost"] |= {"tokens": facts["tokens"]} if facts and "tokens" in facts else {}
        if self.prices:
            manifest["cost"] |= {"money": ledger.money(manifest["cost"], self.prices), "prices": dict(self.prices)}
        self.storage.write_json(f"{self.folder}/{MANIFEST}", manifest)
        _clear(self.storage, self.folder)
        return open_artifact(self.storage, self.kind, self.name)

    def _describe(self, name: str) -> dict[str, Any]:
        path = f"{self.folder}/{name}"
        return {"bytes": self.storage.size(path), "sha256": self.storage.sha256(path)}


def begin_step(
    settings: Any, kind: str, inputs: Mapping[str, Artifact | str], recipe: Mapping[str, Any] | None = None
) -> Draft:
    """`begin` with the root, the name, the prices and, unless another is given, the recipe of a step's config."""
    recipe = config.recipe(settings) if recipe is None else recipe
    draft = begin(settings.runtime.root, kind, settings.name, recipe=recipe, inputs=inputs)
    prices = settings.runtime.prices
    return draft if prices is None else replace(draft, prices=prices.model_dump())


def begin(
    root: str | Storage, kind: str, name: str, *, recipe: Mapping[str, Any], inputs: Mapping[str, Artifact | str]
) -> Draft:
    """Start, resume or skip the artefact `kind/name`.

    `inputs` maps a role to a published artefact or, for things outside the root, to a content hash. The result's
    `published` is set when the work is already done. Raises UserError when the work of another recipe stands under that
    name, or of inputs that have been made again since and have another content. A draft of another recipe is replaced
    if it has no finished work, or was given up.
    """
    storage = root if isinstance(root, Storage) else Storage(root)
    _check_name(kind, name)
    print_of_inputs = {role: i.fingerprint if isinstance(i, Artifact) else i for role, i in inputs.items()}
    recipe = json.loads(json.dumps(recipe))
    mark = fingerprint(recipe, print_of_inputs)
    wanted = {"recipe": recipe, "inputs": _described(inputs), "fingerprint": mark}
    folder = f"{kind}/{name}"
    state = next((file for file in (MANIFEST, DRAFT) if storage.exists(f"{folder}/{file}")), None)
    found = storage.read_json(f"{folder}/{state}") if state else wanted
    if found["fingerprint"] != mark or _are_remade(found["inputs"], inputs):
        if state == MANIFEST or not (found.get("given_up") or _is_empty(storage, folder)):
            lines = "".join(f"  {line}\n" for line in manifests.differing(found, wanted))
            what = "was made" if state == MANIFEST else "was begun"
            raise UserError(
                f"{storage.uri(folder)} {what} by another recipe or from other inputs:\n{lines}"
                "Choose another name=, or delete that folder to make it again."
            )
        _make_room(storage, folder)
        state = None
    if state is None:
        storage.write_json(f"{folder}/{DRAFT}", wanted | {"started": time.time()})
    if state == MANIFEST and storage.exists(f"{folder}/{DRAFT}"):  # killed between the manifest and the clearing
        _clear(storage, folder)
    published = Artifact(storage, kind, name, found) if state == MANIFEST else None
    return Draft(storage, kind, name, mark, published)


def _described(inputs: Mapping[str, Artifact | str]) -> dict[str, Any]:
    return {
        role: {"kind": i.kind, "name": i.name, "fingerprint": i.fingerprint, "content": i.content}
        if isinstance(i, Artifact)
        else i
        for role, i in sorted(inputs.items())
    }


def _are_remade(found: Mapping[str, Any], inputs: Mapping[str, Artifact | str]) -> bool:
    """Whether an input has another content than it had. Its fingerprint is the same: it says what was asked for."""
    used = {role: i["content"] for role, i in found.items() if isinstance(i, Mapping) and "content" in i}
    return any(inputs[role].content != content for role, content in used.items())


def _is_empty(storage: Storage, folder: str) -> bool:
    return not any(storage.files(f"{folder}/{scratch}") for scratch in (SHARDS, WORK))


def _make_room(storage: Storage, folder: str) -> None:
    """For another recipe's draft: all but what was fetched goes, records of shards before what they speak of, and last
    the draft that says there may be more."""
    names = {name.split("/")[0] for name in storage.files(folder)} - {SHARDS, FETCHED, DRAFT}
    for name in (SHARDS, *sorted(names), DRAFT):
        storage.delete(f"{folder}/{name}")
    storage.drop_half_written(folder)


def _clear(storage: Storage, folder: str) -> None:
    for name in _SCRATCH:
        storage.delete(f"{folder}/{name}")
    storage.drop_half_written(folder)


def _check_name(kind: str, name: str) -> None:
    if kind not in KINDS:
        raise UserError(f"kind {kind!r}: one of {', '.join(KINDS)}")
    if not name or name.startswith((".", "_")) or not all(c.isalnum() or c in "-_." for c in name):
        raise UserError(f"name = {name!r}: letters, digits, '-', '_' and '.', starting with a letter or digit")
