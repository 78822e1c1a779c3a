"""Second tasks: what they learn, and that batch-norm's running statistics stay."""

import pytest
import torch

from fastssl.methods.bricks.joint import TASKS, Contrast, Rotation, joint_task


@pytest.mark.parametrize("name", TASKS[1:])
def test_a_task_is_learned_and_moves_no_running_statistics(toy, name):
    network = toy.network(encoder=toy.Normed).train()
    torch.manual_seed(0)
    task = joint_task(name, "method.joint", network, toy.spec(), width=4, temperature=0.5).double()
    assert isinstance(task, {"rotation": Rotation, "contrast": Contrast}[name])
    x = torch.randn(12, 3, 3, 3, dtype=torch.float64)
    x[:, :, 0, 0] += 4  # which way is up
    views = (x,) if name == "rotation" else (x, x + 0.05 * torch.randn_like(x))
    before = {key: value.clone() for key, value in network.named_buffers()}
    parameters = [*network.encoder.parameters(), *task.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = task(network, views)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0] and all(p.grad is not None for p in parameters)
    assert all(torch.equal(value, before[key]) for key, value in network.named_buffers())


def test_none_is_no_task(toy):
    assert joint_task("none", "method.joint", toy.network(), toy.spec(), width=4, temperature=0.5) is None


def test_fewer_images_than_angles(toy):
    task = Rotation(7).double()
    assert torch.isfinite(task(toy.network(), (torch.randn(2, 3, 3, 3, dtype=torch.float64),)))
