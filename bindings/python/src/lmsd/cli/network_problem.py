"""A network file as a problem: noise, classes, guidance, and calls in parts that fit into memory."""

import numpy as np

import lmsd
from lmsd.guidance import of_call, scales

from .network import Network, reason
from .terminal import note

STARTS = (1 << 21, 1 << 20, 0)  # numbers of the first batches: of comparisons, held-out ones, fitted ones
INPUTS = ("x", "sigma", "class")


class NetworkProblem:
    """What `lmsd.distill` asks for, from a network file.

    Noise and class of a trajectory follow from `seed` and its number alone, whatever the batch: trajectory n
    has those of PCG64([seed, n]), first the normal numbers, then the class. `classes`: how many the network
    takes, 0 for none; the next number stands for none of them. `only`: the class of all trajectories.
    `guidance`: between the prediction for a class and that for none; where there are several scales, batches
    take one each in turn.
    """

    def __init__(
        self, network: Network, shape, *, sigma_max, batch=8, classes=0, guidance=1.0, seed=0, only=None
    ):
        self.scales = scales(guidance)
        if self.scales != [1.0] and not classes:
            said = ", ".join(f"{scale:g}" for scale in self.scales)
            raise lmsd.Error(
                f"guidance is {said}, which needs a model that takes a class: say --classes, or --guidance 1 "
                "for a model that has its guidance in it"
            )
        if only is not None and not (classes and only <= classes):
            raise lmsd.Error(f"--class must be 0 to --classes, which is {classes}")
        check_inputs(network, INPUTS if classes else INPUTS[:2])
        self.network, self.shape, self.sigma_max = network, tuple(shape), sigma_max
        self.classes, self.guidance, self.seed, self.only = classes, self.scales[0], seed, only
        self.like = network.tensor(np.zeros((batch, *self.shape), np.float32))
        self.rows = batch  # trajectories in a call at most
        self.labels = np.zeros(batch, np.int64)

    def begin(self, batch: int):
        """x_T of batch number `batch`, whose classes and guidance become current."""
        self.guidance = self.scales[batch % len(self.scales)]
        size = len(self.like)
        start = next(start for start in STARTS if batch >= start)
        noise = np.empty((size, *self.shape), np.float32)
        for row in range(size):
            generator = np.random.default_rng([self.seed, start + (batch - start) * size + row])
            noise[row] = generator.standard_normal(self.shape, np.float32)
            self.labels[row] = generator.integers(max(self.classes, 1))
        if self.only is not None:
            self.labels[:] = self.only
        return self.network.tensor(noise * np.float32(self.sigma_max))

    def model(self, x, sigma: float, share: float = 1.0):
        """The prediction of x0, with this share of the guidance.

        Where memory runs out, calls are halved from then on.
        """
        parts, first = [], 0
        while first < len(x):
            rows = min(self.rows, len(x) - first)
            try:
                labels = self.labels[first : first + rows]
                parts.append(self._guided(x[first : first + rows], sigma, labels, share))
                first += rows
            except Exception as error:
                if not self._halve(error, rows, sigma):
                    raise
        return parts[0] if len(parts) == 1 else self.network.joined(parts)

    def _halve(self, error: Exception, rows: int, sigma: float) -> bool:
        """After an error in a call of so many rows: whether it is worth trying with fewer."""
        if isinstance(error, lmsd.Error):
            return False
        # torch.jit and onnxruntime have error classes of their own; their words are those of RuntimeErrors
        full = lmsd.out_of_memory(error) or lmsd.out_of_memory(RuntimeError(str(error)))
        if not full or rows == 1:
            status = lmsd.Status.OUT_OF_MEMORY if full else lmsd.Status.INVALID_ARGUMENT
            raise lmsd.Error(f"the model at sigma {sigma:g}: {reason(error)}", status) from error
        self.rows = rows // 2
        note(f"out of memory with {rows} trajectories in a call of the model; going on with {self.rows}")
        return True

    def _guided(self, x, sigma: float, labels: np.ndarray, share: float):
        scale = of_call(self.guidance, share)
        if scale == 1:
            return self.network.run(x, sigma, labels if self.classes else None)
        none = np.full_like(labels, self.classes)
        both = self.network.run(self.network.joined([x, x]), sigma, np.concatenate([labels, none]))
        given, without = both[: len(x)], both[len(x) :]
        return without + scale * (given - without)

    def fit_memory(self, budget: int) -> None:
        """Sets how many trajectories a call takes, such that the memory in use stays within `budget` bytes.

        Calls of 1, 2, 4, ... are measured; what a further doubling would take is estimated from the last one.
        """
        before, fitting, rows = self.network.memory_used(), 0, 1
        if before is None:
            raise lmsd.Error("--memory cannot be measured here; use --batch")
        x, most = self.begin(0), len(self.like)
        while True:
            self.rows = rows
            self.model(x[:rows], self.sigma_max)
            used = self.network.memory_used()
            if used > budget or self.rows < rows:
                break
            fitting = rows
            if rows == most or used + 2 * max(0, used - before) > budget:
                break
            before, rows = used, min(2 * rows, most)
        if fitting == 0:
            raise lmsd.Error(
                f"--memory is {gib(budget)}, and one trajectory takes this process to {gib(used)} already",
                lmsd.Status.OUT_OF_MEMORY,
            )
        self.rows = fitting
        note(f"{fitting} of {most} trajectories in a call of the model fit into {gib(budget)}")


def check_inputs(network: Network, given: tuple[str, ...]) -> None:
    """Refuses a network that takes more or fewer inputs than it would be given."""
    if len(given) in network.inputs:
        return
    hint = "; say --classes" if len(given) < 3 in network.inputs else ""
    hint = "; go without --classes" if 2 in network.inputs else hint
    raise lmsd.Error(
        f"the model takes {network.inputs[-1]} inputs, and would be given {', '.join(given)}{hint}"
    )


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
