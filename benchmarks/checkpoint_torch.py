"""Measures `torch.distributed.checkpoint.async_save` on the model of `benchmarks.wide_model`, in PyTorch."""

import tempfile
import time

LAYERS, UNITS, BATCH = 96, {"1.2 GB": 1024, "0.12 GB": 320}, 8  # as in wide_model, which imports TensorFlow


def measure(size: str, rounds: int) -> list[tuple[float, float, float]]:
    """Returns for each save, in seconds: the blocked time, the time of the next batch, and of the batch after that."""
    import torch
    from torch.distributed import checkpoint

    layers = [part for _ in range(LAYERS) for part in (torch.nn.Linear(UNITS[size], UNITS[size]), torch.nn.ReLU())]
    model, x = torch.nn.Sequential(*layers), torch.randn(BATCH, UNITS[size])
    optimizer = torch.optim.Adam(model.parameters(), 1e-6)

    def train():
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), x).backward()
        optimizer.step()

    measured = []
    with tempfile.TemporaryDirectory() as directory:
        for i in range(rounds + 1):
            train()
            times = [time.perf_counter()]
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            writing = checkpoint.async_save(state, checkpoint_id=f"{directory}/{i}", no_dist=True)
            times.append(time.perf_counter())
            train()
            times.append(time.perf_counter())
            writing.result()
            times.append(time.perf_counter())
            train()
            times.append(time.perf_counter())
            measured.append((times[1] - times[0], times[2] - times[1], times[4] - times[3]))
    return measured[1:]
