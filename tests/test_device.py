"""The precision follows what the processor multiplies natively; no GPU and no particular CPU is needed here."""

from collections.abc import Iterator

import pytest
import torch

from quire import device


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """The answer is kept for the process: neither an earlier one is seen here, nor one of these elsewhere."""
    device.precision.cache_clear()
    yield
    device.precision.cache_clear()


@pytest.mark.parametrize(
    ("capability", "training", "inference"),
    [
        ((9, 0), torch.bfloat16, torch.bfloat16),
        ((8, 0), torch.bfloat16, torch.bfloat16),
        ((7, 5), torch.float32, torch.float16),
        ((6, 1), torch.float32, torch.float32),
    ],
)
def test_a_gpu_has_bfloat16_from_ampere_on(
    capability: tuple[int, int], training: torch.dtype, inference: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert (device.precision(), device.inference_precision()) == (training, inference)


@pytest.mark.parametrize(
    ("vectors", "bf16", "amx", "expected"),
    [
        ("AVX512", True, False, torch.bfloat16),
        ("AVX512", False, True, torch.bfloat16),
        ("AVX512", False, False, torch.float32),
        ("AVX2", True, True, torch.float32),  # the CPU has them, and torch was told or built to leave them
    ],
)
def test_a_cpu_has_bfloat16_where_its_instructions_are_there_and_used(
    vectors: str, bf16: bool, amx: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert device.precision() == device.inference_precision() == expected
    assert device.autocast()._enabled == (expected == torch.bfloat16)
