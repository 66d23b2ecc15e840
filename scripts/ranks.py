"""What a search step spends on what, as more processes share a batch: gloo on this machine's CPU, one thread each.

Step, tables and check are CPU time, without the waiting; messages are what a process waits for in them, by the clock.
Each is the least of all steps: other work on the machine makes the others longer.

python scripts/ranks.py --processes 1,2 --batch 64 --width 8
"""

from __future__ import annotations

import argparse
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import actsearch._torchvision  # noqa: F401

import torch
import torch.distributed as dist

from actsearch import MixedCell, models
from actsearch.bench.steps import Searching
from actsearch.tasks import Classification

WARM_UP = 3


class Stopwatch:
    """Seconds since the last `taken` in a function that it stands before."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0
        self.bytes = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start
            if args and isinstance(args[0], torch.Tensor):
                self.bytes += args[0].nbytes

    def taken(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def table_cost(cell: MixedCell) -> None:
    """Both tables of a step, and the way back from one of them to α: what does not depend on the batch."""
    cell.mode = "mixed"
    cell.train()
    cell.resample()
    y = cell(torch.linspace(-3, 3, 64), 0, True)
    torch.autograd.grad(y.sum(), list(cell.alpha.values()), allow_unused=True)
    with torch.no_grad():
        cell.resample()


def work(rank: int, world: int, port: int, given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = models.resnet8(num_classes=10, width=given.width)
    batch = torch.randn(given.batch // world, 3, given.size, given.size), torch.zeros(given.batch // world).long()
    cell = MixedCell(given.space, "dirichlet", "table", seed=0)
    searching = Searching(Classification(model, 10, lr=0.05), cell, batch, torch.device("cpu"))
    reduced = Stopwatch(dist.all_reduce)
    dist.all_reduce = reduced
    times: dict[str, list[float]] = {"step": [], "messages": [], "table": [], "check": []}
    for index in range(WARM_UP + given.steps):
        for name, call in (
            ("step", searching.pair),
            ("table", lambda: table_cost(cell)),
            ("check", searching.search._check_agreement),
        ):
            reduced.taken()
            if world > 1:
                dist.barrier()
            start = time.thread_time()
            call()
            taken = time.thread_time() - start
            if index >= WARM_UP:
                times[name].append(1e3 * taken)
                if name == "step":
                    times["messages"].append(1e3 * reduced.taken())
    if rank == 0:
        shown = [f"{min(times[name]):.3g}" for name in ("step", "table", "messages", "check")]
        sent = reduced.bytes / (WARM_UP + given.steps) / 1e3
        print("|", " | ".join([str(world), str(given.batch // world), *shown, f"{sent:.0f}"]), "|", flush=True)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2", help="numbers of processes, with commas between")
    parser.add_argument("--batch", type=int, default=64, help="examples a step, over all processes")
    parser.add_argument("--width", type=int, default=8, help="of a ResNet-8")
    parser.add_argument("--size", type=int, default=8, help="of an image, in pixels")
    parser.add_argument("--space", default="grafs")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    print("| processes | batch of each | step, ms | tables, ms | waiting for messages, ms | check, ms | kB a step |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for world in map(int, given.processes.split(",")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(work, (world, port, given), nprocs=world)


if __name__ == "__main__":
    main()
