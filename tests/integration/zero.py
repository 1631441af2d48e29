"""Runs a function on two gloo processes, as DeepSpeed needs them."""

import os
import socket

import torch


def on_two(tmp_path, target, *args):
    """What `target(rank, world, *args)` returns on each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, str(tmp_path), target, args), nprocs=2)
    return [torch.load(tmp_path / f"returned-{rank}.pt", weights_only=True) for rank in range(2)]


def _process(rank, port, folder, target, args):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(target(rank, 2, *args), f"{folder}/returned-{rank}.pt")
    torch.distributed.destroy_process_group()
