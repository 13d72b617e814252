"""How fast the devices of this machine give each other what they hold, as FSDP has them do: the bus bandwidth of an
all-gather.

Each of n devices gives its nth of the bytes to the n - 1 others: (n - 1) / n of all bytes come in at each, and that
over the time is what `engine.plan` reckons with (nccl-tests calls it busbw).
"""

import socket
import time

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

BYTES = 2**28
"""Of a gathered tensor: about a block of an 8B model in bf16."""
ROUNDS = 10


def bus_bandwidth(n: int, *, device: str = "cuda", n_bytes: int = BYTES) -> float:
    """Bytes a second that come in at each of n devices: the median of ten all-gathers, in n processes of their own."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    found = torch.zeros(1, dtype=torch.float64).share_memory_()
    spawn(_measure, args=(n, device, n_bytes, port, found), nprocs=n)
    return found.item()


def _measure(rank: int, n: int, device: str, n_bytes: int, port: int, found: torch.Tensor) -> None:
    """One process: joins the others, gathers, and on rank 0 says how fast. Collective."""
    where = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=n)
    if device == "cuda":
        torch.cuda.set_device(where)
    own = torch.zeros(n_bytes // 2 // n, dtype=torch.bfloat16, device=where)
    whole = torch.zeros(len(own) * n, dtype=torch.bfloat16, device=where)
    seconds = []
    for _ in range(ROUNDS + 2):  # the first two set the connections up
        dist.barrier()
        begun = time.perf_counter()
        dist.all_gather_into_tensor(whole, own)  # every rank is here: each walks through the same rounds
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    if rank == 0:
        median = sorted(seconds[2:])[ROUNDS // 2]
        found[0] = (n - 1) / n * whole.numel() * whole.element_size() / median
    dist.destroy_process_group()
