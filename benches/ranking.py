"""How much of the strongest field a fit finds: what it must beat, measured beside the best of all.

    python benches/ranking.py --networks "emoji, pixel" "emoji, latent" --nfe 5

A fit asks the model about two dozen of a thousand schedules and names the best (`handcrafted`). Prints how
many times as far from the teacher that one ends as the best of all, both on the test trajectories. The best
of all is chosen on these, which favours it.
"""

import argparse
import functools
import statistics

import lmsd
import networks  # finds the examples, and sets the threads of BLAS
from common import about, contest, field, in_words, measure, which
from lmsd.cli.terminal import note, print_table

BATCH = 4  # trajectories in a call
CALLS = 3000  # of a batch, at most: a fit with few asks about less
ROUNDS = {True: (8, 32), False: (8, 64)}  # of the contest, where a network is dear


def named(name, nfe, seed):
    """What the fit of one seed must beat: the solver and grid that it names first."""
    problem = networks.NETWORKS[name](BATCH, seed)
    options = {"nfe": nfe, "max_calls": CALLS, "iterations": 1, "progress": False, **about(problem)}
    found = lmsd.distill(problem.model, problem.begin, problem.like, **options)
    return in_words(found.schedules[nfe].made_by["handcrafted"][0])


def rows(name, nfe, seeds):
    """A line of the table for each seed: what the fit names, and the ratio of its distance to the least."""
    test, count = networks.test_problem(name), networks.test_count(name)
    everything = {which(schedule): schedule for schedule in field(test, nfe, "strongest")}
    make = functools.partial(networks.NETWORKS[name], seed=networks.TEST_SEED)
    groups, rounds = {nfe: list(everything.values())}, ROUNDS[name in networks.DEAR]
    best, least = contest(make, groups, test, count, rounds)[nfe][0]
    note(f"{name}, {nfe} NFE: {which(best)}, {least:.4f}")
    for seed in range(seeds):
        first, ratio = named(name, nfe, seed), ""
        if first in everything:  # grids that the fit makes from its recorded run are not
            (distance,) = measure(test, [everything[first]], count)
            ratio = f"{distance / least:.3f}"
        yield [name, str(nfe), str(seed), first, ratio]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=networks.NETWORKS, default=["digits, guidance 3"])
    parser.add_argument("--nfe", type=int, default=5, help="model calls (default 5)")
    parser.add_argument("--seeds", type=int, default=3, help="of the noise that fits see (default 3)")
    args = parser.parse_args()
    table = [row for name in args.networks for row in rows(name, args.nfe, args.seeds)]
    print_table([["network", "NFE", "seed", "to beat, by the fit", "times the least"], *table])
    ratios = [float(row[-1]) for row in table if row[-1]]
    if ratios:
        print(f"median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
