"""What the processor at hand does well: device, precision, peak FLOP/s."""

import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch

# Dense bf16 FLOP/s without sparsity, from NVIDIA's data sheets; matched by a part of the device's name.
_PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "L4": 121e12, "T4": 65e12}


def device() -> torch.device:
    """The GPU if this process has one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def for_threads() -> Callable[[], None]:
    """To be called in a new thread: makes this thread's GPU the current one there, which is the first in every new one.

    Memory pinned under another would take some of that one's.
    """
    if not torch.cuda.is_available():
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor itself multiplies bfloat16 natively (AMX, AVX512-BF16), be there a GPU or not."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


@lru_cache
def precision() -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively (Ampere and later, AMX, AVX512-BF16), else float32.

    Elsewhere bf16 is emulated: a CPU with AVX2 alone multiplies it over 100 times slower than fp32.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def inference_precision() -> torch.dtype:
    """As `precision()`, and float16 on GPUs that multiply it natively but not bfloat16 (Volta, Turing): nothing is
    learnt, so no gradient can underflow."""
    if torch.cuda.is_available() and (7, 0) <= torch.cuda.get_device_capability() < (8, 0):
        return torch.float16
    return precision()


def autocast(dtype: torch.dtype | None = None) -> torch.autocast:
    """Autocast to `dtype` (default: `precision()`); a no-op for float32."""
    dtype = dtype or precision()
    return torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32)


@lru_cache
def peak_flops(dtype: torch.dtype) -> float:
    """FLOP/s that MFU is measured against: the data sheet for a known GPU, else a measured matrix product."""
    if device().type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name()
        for part, flops in _PEAK_BF16.items():
            if part in name:
                return flops
    size = 4096 if device().type == "cuda" else 1024
    a = torch.randn(size, size, device=device(), dtype=dtype)
    best = 0.0
    for _ in range(20):  # the best of many: others may use the processor meanwhile
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # .item() waits for the GPU
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def utilisation(flops: float, seconds: float) -> float:
    """MFU, the share of this device's peak: `flops` are those of this worker alone, not of all workers together.

    Equal workers have equal shares, so it is also the FLOPs of all over the peak of all their devices.
    """
    return flops / seconds / peak_flops(precision())
