"""The emoji models on a device of torch, for many runs at once: LMSD_EMOJI_DEVICE=cuda.

A GPU is idle under batches of a few pictures. Calls that several threads make at the same time are one batch
here, whatever their noise levels, in a CUDA graph. In single precision, without TF32, as on the CPU.
"""

import queue
import threading

import numpy as np
import torch
from export import denoiser

ROWS = (8, 16, 32, 64, 128, 256, 512, 1024)  # sizes of a batch; what has fewer is filled up


class Call:
    """A call that waits for its result, or for the error."""

    def __init__(self, inputs):
        self.inputs, self.rows = inputs, len(inputs[0])
        self.result, self.done = None, threading.Event()


class Graph:
    """The network on so many rows: what is copied into `inputs` on the host comes out in `output`."""

    def __init__(self, net, like, rows, device):
        pinned = device.type == "cuda"
        shapes = [(value.dtype, (rows, *value.shape[1:])) for value in map(torch.from_numpy, like)]
        host = [torch.zeros(shape, dtype=dtype, pin_memory=pinned) for dtype, shape in shapes]
        host[1].fill_(0.5)
        self.net, self.inputs, self._host = net, [value.numpy() for value in host], host
        self._there = [value.to(device) for value in host]
        self._graph = None
        if pinned:
            for _ in range(3):  # before it is captured it must have run
                net(*self._there)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._end = net(*self._there)
            self._back = torch.zeros(self._end.shape, pin_memory=True)

    def run(self):
        """The predictions, in memory that the next run writes anew."""
        for there, here in zip(self._there, self._host, strict=True):
            there.copy_(here, non_blocking=True)
        if self._graph is None:
            return self.net(*self._there).numpy()
        self._graph.replay()
        self._back.copy_(self._end, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._back.numpy()


class Shared:
    """(x [n, ...], sigma [n], words [n, W]) -> denoised [n, ...], numpy; for any number of threads."""

    def __init__(self, name, device):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.device = torch.device(device)
        self.net = denoiser(name).to(self.device)
        self.graphs, self.waiting = {}, queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def __call__(self, *inputs):
        if len(inputs[0]) > ROWS[-1]:
            halves = zip(*(np.array_split(value, 2) for value in inputs), strict=True)
            return np.concatenate([self(*half) for half in halves])
        call = Call(inputs)
        self.waiting.put(call)
        call.done.wait()
        if isinstance(call.result, Exception):
            raise call.result
        return call.result

    @torch.no_grad()
    def _serve(self):
        left = None
        while True:
            calls = [left or self.waiting.get()]
            rows, left = calls[0].rows, None
            while not self.waiting.empty():
                one = self.waiting.get()
                if rows + one.rows > ROWS[-1]:
                    left = one
                    break
                calls.append(one)
                rows += one.rows
            try:
                self._answer(calls, rows)
            except Exception as error:  # the threads that wait have to hear of it
                for call in calls:
                    call.result = error
            for call in calls:
                call.done.set()

    def _answer(self, calls, rows):
        size = next(size for size in ROWS if size >= rows)
        if size not in self.graphs:
            self.graphs[size] = Graph(self.net, calls[0].inputs, size, self.device)
        graph, at = self.graphs[size], 0
        for call in calls:
            for there, here in zip(graph.inputs, call.inputs, strict=True):
                there[at : at + call.rows] = here
            at += call.rows
        result, at = graph.run(), 0
        for call in calls:
            call.result = result[at : at + call.rows].copy()
            at += call.rows


_made, _making = {}, threading.Lock()


def shared(name, device):
    """One for each model and device in a process."""
    with _making:
        if (name, device) not in _made:
            _made[name, device] = Shared(name, device)
        return _made[name, device]
