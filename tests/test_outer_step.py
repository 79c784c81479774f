"""Two processes give the outer gradient of one: DDP and FSDP2 around a model that learns while it reads."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from language_models import reading, small, some
from torch.testing import assert_close

from nested.outer_step import OuterStep

TOKENS = some(13, batch=4)


def gradients(step: torch.nn.Module, rows: slice) -> None:
    step(TOKENS[rows, :-1], TOKENS[rows, 1:]).backward()


def of_one_process() -> dict[str, torch.Tensor]:
    step = OuterStep(small(reading()))
    gradients(step, slice(None))
    return {name: p.grad for name, p in step.named_parameters() if p.grad is not None}


def process(rank: int, port: int, how: str, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    step = OuterStep(small(reading()))
    if how == "ddp":
        wrapped = torch.nn.parallel.DistributedDataParallel(step)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(step, mesh=init_device_mesh("cpu", (2,)), reshard_after_forward=False)
    gradients(wrapped, slice(2 * rank, 2 * rank + 2))
    found = {n.removeprefix("module."): p.grad for n, p in wrapped.named_parameters()}
    whole = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}  # type: ignore[union-attr]
    if rank == 0:
        torch.save(whole, folder / "gradients.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_give_the_outer_gradient_of_one(how: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, (port, how, tmp_path), nprocs=2)
    found, wanted = torch.load(tmp_path / "gradients.pt", weights_only=True), of_one_process()
    assert set(found) == set(wanted)
    for name, g in wanted.items():
        assert_close(found[name], g, rtol=1e-12, atol=1e-12)
