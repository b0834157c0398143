"""Checkpoints of the training loop: safetensors and JSON in the artefact's scratch folder, newest complete one wins."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from quire.artifact import WORK, Draft
from quire.errors import UserError

_KEEP = 2  # the newest, and one more in case the newest was cut off


def save(draft: Draft, module: nn.Module, optimizer: torch.optim.Optimizer, state: Any, rank: int) -> None:
    """Rank 0 writes weights, optimiser moments and state; the state file last, as the done marker."""
    if rank == 0:
        folder = f"{draft.folder}/{WORK}/checkpoint-{state.step:08d}"
        tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()}
        draft.storage.write_bytes(f"{folder}/state.safetensors", save_tensors(_detached(tensors)))
        draft.storage.write_json(f"{folder}/state.json", {"fingerprint": draft.fingerprint, **asdict(state)})
        for old in _complete(draft)[:-_KEEP]:
            draft.storage.delete(f"{draft.folder}/{WORK}/{old}")
        # Only now is it certain that no resumed run asks for another: the state that names this one is written.
        for file in draft.storage.files(f"{draft.folder}/{WORK}"):
            if file.startswith("best-") and file != _best(state.best_step):
                draft.storage.delete(f"{draft.folder}/{WORK}/{file}")
    _barrier()


def load_latest(
    draft: Draft, module: nn.Module, optimizer: torch.optim.Optimizer, state_class: Callable[..., Any]
) -> Any | None:
    """Restore module and optimiser from the newest complete checkpoint; its state, or None when there is none.

    The parameter groups' settings are not restored: they follow from the config, which the draft's fingerprint fixes.
    Raises UserError when the checkpoint is of another recipe or of other inputs, or does not say of which, and when
    the weights that it calls the best are not there: before the training, not after.
    """
    names = _complete(draft)
    if not names:
        return None
    folder = f"{draft.folder}/{WORK}/{names[-1]}"
    state = draft.storage.read_json(f"{folder}/state.json")
    found = state.pop("fingerprint", None)
    if found != draft.fingerprint:
        raise UserError(
            f"{draft.storage.uri(folder)} is of another recipe or of other inputs "
            f"(fingerprint {found[:12] if found else 'none'}, this run's is {draft.fingerprint[:12]}): "
            f"choose another name= or delete {draft.storage.uri(draft.folder)}"
        )
    best = f"{draft.folder}/{WORK}/{_best(state['best_step'])}"
    if not draft.storage.exists(best):
        raise UserError(
            f"{draft.storage.uri(best)} is missing, the best weights of {draft.storage.uri(folder)}: "
            f"choose another name= or delete {draft.storage.uri(draft.folder)}"
        )
    tensors = load_tensors(draft.storage.read_bytes(f"{folder}/state.safetensors"))
    model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    module.load_state_dict(model, strict=True)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return state_class(**state)


def history(draft: Draft) -> list[dict[str, Any]]:
    """The records of the steps before the newest complete checkpoint, from which a run goes on."""
    names = _complete(draft)
    return draft.storage.read_json(f"{draft.folder}/{WORK}/{names[-1]}/state.json")["history"] if names else []


def save_best(draft: Draft, module: nn.Module, step: int, rank: int) -> None:
    """Rank 0 keeps the weights of the best evaluation so far; `save` drops those before, once it is remembered."""
    if rank == 0:
        tensors = _detached(dict(module.state_dict()))
        draft.storage.write_bytes(f"{draft.folder}/{WORK}/{_best(step)}", save_tensors(tensors))
    _barrier()


def load_best(draft: Draft, module: nn.Module, step: int) -> None:
    """Put the weights of the best evaluation, which was at `step`, into the module."""
    tensors = load_tensors(draft.storage.read_bytes(f"{draft.folder}/{WORK}/{_best(step)}"))
    module.load_state_dict(tensors, strict=True)


def keep(draft: Draft, write: Callable[[Path], None], step: int, rank: int) -> None:
    """Rank 0 publishes the weights as they are now, as a model folder beside the final one."""
    if rank == 0:
        with draft.storage.local_folder(f"{draft.folder}/checkpoints/step-{step:08d}") as folder:
            write(folder)
    _barrier()


def batch_name(draft: Draft, step: int, micro: int, rank: int) -> str:
    """Where a batch at which the loss went bad is kept, without the ending."""
    return f"{draft.folder}/{WORK}/nonfinite-step-{step:08d}-micro-{micro}-rank-{rank}"


def evaluation_name(draft: Draft, step: int) -> str:
    """Where the rows of an evaluation that gave no number are kept, without the ending."""
    return f"{draft.folder}/{WORK}/nonfinite-step-{step:08d}-evaluation"


def save_batch(draft: Draft, batch: dict[str, torch.Tensor], rows: list[str], name: str) -> None:
    """Keep a batch, and beside it what each of its rows was made from, if that is known."""
    draft.storage.write_bytes(f"{name}.safetensors", save_tensors(_detached(batch)))
    if rows:
        draft.storage.write_json(f"{name}.json", rows)


def _best(step: int) -> str:
    return f"best-{step:08d}.safetensors"


def _complete(draft: Draft) -> list[str]:
    """Names of the checkpoints whose state file is there, oldest first."""
    files = draft.storage.files(f"{draft.folder}/{WORK}")
    return sorted(f.split("/")[0] for f in files if f.startswith("checkpoint-") and f.endswith("/state.json"))


def _detached(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # A clone each: safetensors refuses tensors that share memory (tied weights).
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
