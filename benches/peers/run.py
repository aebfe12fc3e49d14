"""One cell of the table: one peer, fitted for one network, NFE and seed, measured on test trajectories."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import lmsd
import torch

from .metrics import measured
from .networks import Counted, network
from .settings import FOR, FULL, QUICK
from .table import PEERS
from .trajectories import TEST_TEACHER, run, teacher, test_pool

CELLS = Path(__file__).with_name("cells")  # of docs/results.md


def settings_for(name, quick):
    return QUICK if quick else FOR.get(name, FULL)


class Asked:
    """Settings, and which of them were asked for: a cell is made again where one of those has changed."""

    def __init__(self, settings):
        self.settings, self.all, self.read = settings, json.loads(json.dumps(asdict(settings))), {}

    def __getattr__(self, name):
        self.read[name] = self.all[name]
        return getattr(self.settings, name)


def cell_file(out, name, peer, nfe, seed):
    return out / name.replace(" ", "_") / f"{peer}-{nfe:02d}-{seed}.json"


def sampled(net, sampler, trajectories):
    """(end points, CPU seconds an image, evaluations of the network an image) on the trajectories."""
    counted, began = Counted(net), time.process_time()
    ends = [run(counted, sampler, part.x, part.conditions) for part in trajectories.batches(net.batch_size)]
    seconds = (time.process_time() - began) / len(trajectories)
    return ends, seconds, counted.forward / len(trajectories)


def judged(net, sampler, trajectories):
    """What is measured of a sampler."""
    ends, seconds, calls = sampled(net, sampler, trajectories)
    found = measured(net, torch.cat(ends), trajectories.ends)
    return found | {"seconds": seconds, "calls": calls, "evaluations": calls * net.evaluations}


def described(sampler):
    """A sampler as JSON."""
    if isinstance(sampler, lmsd.Schedule):
        return sampler.to_dict()
    return {**vars(sampler), "schedule": sampler.schedule.to_dict()}


def cell(name, peer, nfe, seed, quick=False, out=CELLS):
    """The figures of one cell, from its file where that was made with the same settings."""
    settings, file = Asked(settings_for(name, quick)), cell_file(out, name, peer, nfe, seed)
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["settings"].items() <= settings.all.items():
            return kept
    net = network(name)
    trajectories = test_pool(net, settings.test)
    counted, began = Counted(net), time.process_time()
    if peer == "teacher":
        sampler = teacher(net, nfe)
        words = sampler.name
    else:
        sampler, words = PEERS[peer][2](counted, nfe, seed, settings)
    seconds = time.process_time() - began
    calls = counted.forward + 3 * counted.gradient
    cost = {"image_calls": calls, "evaluations": calls * net.evaluations, "seconds": seconds}
    cost |= {"forward": counted.forward, "with_gradients": counted.gradient}
    found = {"network": name, "peer": peer, "nfe": nfe, "seed": seed, "words": words, "cost": cost}
    found |= {"metrics": judged(net, sampler, trajectories), "sampler": described(sampler)}
    found["settings"] = settings.read
    text = json.dumps(found, indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return json.loads(text)


def cells(name, nfes, seeds, peers, long_nfes=()):
    """(peer, NFE, seed) of all cells of a network; the fields also at `long_nfes`."""
    yield "teacher", TEST_TEACHER, 0
    for nfe in sorted({*nfes, *long_nfes}):
        for peer in peers:
            seeded = PEERS[peer][3]
            if nfe in nfes or not seeded:
                for seed in seeds if seeded else [0]:
                    yield peer, nfe, seed
