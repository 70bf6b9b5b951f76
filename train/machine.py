"""What this machine has: cores, memory, arithmetic; and how a run makes use of them."""

import ctypes
import functools
import os
import platform
import resource
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h


def describe() -> dict:
    """Processor, cores that this process may use, accelerators."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": name, "cores": cores(), "accelerators": gpus}


@functools.cache
def has_bf16_kernel(device_type: str) -> bool:
    """Whether PyTorch has a kernel for products in bf16 here.

    On an x86 CPU it has one for AVX-512. Without, as on AMD's before Zen 4 and most of Intel's for
    desktops and laptops, it multiplies number by number: 1 GFLOP/s on two cores of Zen 3, where
    fp32 reaches 130. Of accelerators, a few emulate bf16; they are left to the user.
    """
    if device_type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cores() -> int:
    """The cores that this process may use: its affinity, or all where there is none (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads() -> None:
    """Gives each process its share of the cores.

    `accelerate launch` sets OMP_NUM_THREADS=1, which would leave all cores but one idle (a bf16
    product falls from 371 to 204 GFLOP/s on two cores).
    """
    torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def keep_freed_memory() -> None:
    """Has the C library keep freed memory for the next update, rather than give it back.

    The tensors of an update are as large as those of the last. glibc would map most of them anew
    each time, and the kernel clear every page: 36,000 page faults an update of Tiny GPT. Without
    them it trains 1.1 to 1.4 times as fast. The tensors of an accelerator lie elsewhere.
    """
    libc = _libc()
    if torch.accelerator.is_available() or not hasattr(libc, "mallopt"):
        return
    # Older ones take no more than 32 MiB.
    if libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Gives back what `keep_freed_memory` keeps: for when tensors of other sizes are to come.

    60 updates of BERT with two evaluations have a peak of 1.9 GiB rather than 2.9.
    """
    if hasattr(libc := _libc(), "malloc_trim"):
        libc.malloc_trim(0)


def _libc():
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def check_memory(num_parameters: int) -> None:
    """Raises ValueError for a model that this machine's memory cannot hold while it is trained.

    Weight, gradient and AdamW's two means make 16 bytes a parameter in fp32.
    """
    needed, installed = (
        16 * num_parameters,
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
    if needed > installed:
        raise ValueError(
            f"a model of {num_parameters:,} parameters takes {needed / 2**30:,.0f} GiB to train, "
            f"and this machine has {installed / 2**30:,.0f}: make it smaller (--hidden_size, "
            f"--num_hidden_layers)"
        )


def peak_memory_bytes() -> int:
    """The most memory that this process has had (resident set)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
