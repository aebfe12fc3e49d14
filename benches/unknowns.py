"""The numbers of a schedule as tensors that have gradients, for fits by gradients through the network."""

import lmsd
import torch


class Table:
    """All numbers of a schedule: log sigma, log of the level that the model is told, weights.

    `levels` has sigma_min and sigma_max, between which the model may be told a level; `affine`: the weights
    of a node sum to 1, as in DLMS (ICLR 2025).
    """

    def __init__(self, levels, schedule, affine=False):
        self.start, self.end, self.process = schedule.sigma_start, schedule.sigma_end, schedule.process
        self.range, self.affine = (levels.sigma_min, levels.sigma_max), affine
        sigma = torch.from_numpy(schedule.sigmas[:-1].copy())
        self.log_sigma = sigma.log()
        self.log_told = (sigma * torch.from_numpy(schedule.scales)).log()
        self.table = torch.zeros(schedule.nfe, schedule.nfe, dtype=torch.float64)
        for n, row in enumerate(schedule.weights):
            self.table[n, : len(row)] = torch.from_numpy(row)
        self.unknowns = [self.log_sigma, self.log_told, self.table]
        for unknown in self.unknowns:
            unknown.requires_grad_()

    def sigmas(self):
        """[N + 1], the end included."""
        sigma = self.log_sigma.exp().clamp(max=self.start)
        return torch.cat([sigma, torch.tensor([self.end], dtype=sigma.dtype)])

    def told(self):
        return self.log_told.exp().clamp(*self.range)

    def weights(self):
        """A row for each node, newest first."""
        rows = [self.table[n, : n + 1] for n in range(len(self.table))]
        if self.affine:
            rows = [row + (1 - row.sum()) / len(row) for row in rows]
        return rows

    def states(self, denoise, x, conditions):
        """The states at all nodes, the end included: [x_0, ..., x_N], from x_T.

        `denoise(x, sigma, conditions)`, sigma a tensor of one, gives the prediction of x_0.
        """
        sigmas, told, weights = self.sigmas(), self.told(), self.weights()
        x = (sigmas[0] / self.start).to(x.dtype) * x
        found, seen = [x], []
        for n in range(len(told)):
            seen.insert(0, denoise(x, told[n], conditions))
            r, row = (sigmas[n + 1] / sigmas[n]).to(x.dtype), weights[n].to(x.dtype)
            x = r * x + (1 - r) * sum(w * d for w, d in zip(row, seen, strict=True))
            found.append(x)
        return found

    @torch.no_grad()
    def schedule(self):
        """None where it breaks the format, for example because the sigmas do not decrease."""
        sigma, told = self.sigmas().tolist(), self.told().tolist()
        rows = [row.tolist() for row in self.weights()]
        nodes = [
            {"sigma": s, "scale": t / s, "weights": row}
            for s, t, row in zip(sigma[:-1], told, rows, strict=True)
        ]
        ends = {"sigma_start": self.start, "sigma_end": self.end, "nfe": len(nodes)}
        try:
            return lmsd.Schedule.from_json({"format": 1, "process": self.process, **ends, "nodes": nodes})
        except lmsd.ScheduleError:
            return None
