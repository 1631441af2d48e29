"""Runs functions on two gloo processes, as DeepSpeed needs them."""

import os
import socket

import torch


def on_two(tmp_path, *jobs):
    """For every job (target, arguments...), in order, what `target(rank, world, arguments...)` returns on rank 0 and 1.

    All jobs share two processes: starting them takes longer than a few steps of training.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, str(tmp_path), jobs), nprocs=2)
    ranks = [torch.load(tmp_path / f"returned-{rank}.pt", weights_only=True) for rank in range(2)]
    return list(zip(*ranks, strict=True))


def _process(rank, port, folder, jobs):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.save([target(rank, 2, *args) for target, *args in jobs], f"{folder}/returned-{rank}.pt")
    torch.distributed.destroy_process_group()
