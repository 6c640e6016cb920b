"""Experts over processes: two of them compute what one does on the joined batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

import visionmlp
from tests.randomise import randomise
from visionmlp.data.batches import Batch
from visionmlp.engine.processes import leave_group
from visionmlp.errors import InvalidConfig
from visionmlp.layers.expert_parallel import ParallelExperts, expert_parallel, gather_state, synchronise_gradients
from visionmlp.tasks.classify.task import Classification

PROCESSES = 2
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LABELS = torch.arange(6)


def build() -> nn.Module:
    # noise would be drawn by each process for itself; few places, so that some choices overflow
    options = {"router_noise": False, "token_experts": 4, "channel_experts": 4, "capacity_factor": 0.8}
    model = randomise(visionmlp.create_model("sparsemlp_moe_test", **options)).double().train()  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if ".experts." in name:  # the randomised experts are weak, and their gradients would hide errors
            parameter.data.mul_(4)
    return model


def step(model: nn.Module, rows: slice) -> float:
    loss = Classification(10).training_loss(model, Batch(IMAGES[rows], LABELS[rows]))
    assert {name.rpartition(".")[2] for name in loss.routing} > {"overflow", "entropy", "load3"}
    mean = loss.total / loss.count
    mean.backward()
    return mean.item()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    try:
        group = dist.group.WORLD
        assert group is not None
        model = build()
        whole = {name: value.clone() for name, value in model.state_dict().items()}
        expert_parallel(model, group)
        assert all(torch.equal(whole[name], value) for name, value in gather_state(model, group).items())
        with pytest.raises(InvalidConfig, match="shares its experts already"):
            expert_parallel(model, group)
        size = len(IMAGES) // PROCESSES
        loss = step(model, slice(rank * size, (rank + 1) * size))
        synchronise_gradients(model, group)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.step()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save(
            {
                "loss": loss,
                "gradients": gradients,
                "experts": {n: m.fc1.weight.shape[0] for n, m in model.named_modules() if type(m) is ParallelExperts},
                "state": gather_state(model, group),
            },
            Path(folder) / f"rank{rank}.pt",
        )
    finally:
        leave_group()


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=PROCESSES)
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(PROCESSES)]
    model = build()
    loss = step(model, slice(None))
    assert sum(result["loss"] for result in results) / PROCESSES == pytest.approx(loss, abs=1e-12)
    assert set(results[0]["experts"].values()) == {2}
    for name, parameter in model.named_parameters():
        parts = [result["gradients"][name] for result in results]
        if ".experts." in name:
            got = torch.cat(parts)
        else:
            assert torch.equal(*parts)
            got = parts[0]
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-6
        torch.testing.assert_close(got, parameter.grad, rtol=1e-10, atol=1e-12)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for result in results:
        assert result["state"].keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(result["state"][name], value, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_shared_is_named() -> None:
    class Three:
        def size(self) -> int:
            return 3

    with pytest.raises(InvalidConfig, match="nothing in this model has experts"):
        expert_parallel(visionmlp.create_model("resmlp_test"), Three())  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match=r"spatial.moe has 2 experts, which 3 processes cannot share evenly"):
        expert_parallel(visionmlp.create_model("sparsemlp_moe_test"), Three())  # type: ignore[arg-type]
