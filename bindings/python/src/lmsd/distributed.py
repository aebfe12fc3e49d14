"""Many processes, one distillation, on torch.distributed.

    torchrun --nproc-per-node 4 -m lmsd distill --problem problem.py ...

or in a program of one's own, on every rank alike,

    torch.distributed.init_process_group("gloo")
    distilled = lmsd.distill(model, begin, like=x_T, nfe=5, ranks=lmsd.distributed.Ranks())

Each rank calls the model for its share of the batches. All end with the same schedules, those that one rank
alone would have found, to the last bit. What travels are some hundred numbers for each step of the fit.
"""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist

from ._abi import Error, Status

TIMEOUT = 1800.0  # seconds, as torch's own


class Ranks:
    """This process among those of a process group.

    `group`: one of gloo or NCCL, with its own time-out; by default one of gloo is made over all ranks, as
    these few numbers lie in main memory, and a lost rank of NCCL takes the others down unasked.
    `timeout`: seconds that ranks wait for one another at each measurement, so more than a rank needs for its
    batches of one; then the call ends with an `lmsd.Error`.
    """

    def __init__(self, group=None, timeout: float = TIMEOUT):
        if not dist.is_initialized():
            raise Error("torch.distributed has no process group; call init_process_group, or use torchrun")
        if not timeout > 0:
            raise Error(f"timeout is {timeout}; seconds above 0 are needed")
        self.timeout = None if group else timeout
        self.group = group or dist.new_group(
            backend="gloo", timeout=datetime.timedelta(seconds=timeout), use_local_synchronization=True
        )
        self.rank, self.count = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.on_gpu = dist.get_backend(self.group) == "nccl"

    def sum(self, values) -> None:
        """Adds a numpy array of float64 up over all ranks, in place."""
        try:
            total = torch.from_numpy(values)
            if self.on_gpu:
                total = total.cuda()
            dist.all_reduce(total, group=self.group)
            if self.on_gpu:
                values[:] = total.cpu().numpy()
        except RuntimeError as error:
            late = f", or took longer than {self.timeout:g} s" if self.timeout else ""
            reason = (str(error).splitlines() or [""])[0]
            raise Error(
                f"rank {self.rank} of {self.count} got no answer: another rank was lost{late} ({reason})",
                Status.STOPPED,
            ) from error


@contextlib.contextmanager
def launch(timeout: float = TIMEOUT):
    """The `Ranks` that torchrun started, each with a GPU of its own where there are GPUs."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
    try:
        yield Ranks(timeout=timeout)
    finally:
        dist.destroy_process_group()
