"""What a fit costs: distances at given numbers of image-calls, all included.

    python benches/cost.py

An image-call is one trajectory through the model once; the teacher, the ranking of the published field and
the selection are counted. Distills for the digits network at guidance 1 and 3, the Gaussian mixture over the
digits, the photographs' network (32x32x3) and the emoji models, with several seeds of the noise, and measures
on test trajectories against a teacher of 100 calls. `known` is the best distance known for that network and
NFE (best_known.json; --long measures it again). Beside that: what gradient descent through the network makes
of a fit, what the strongest published field needs, what kills and budgets do, how much memory a fit takes.
Exits with 1 where a figure misses its bar.
"""

import argparse
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "photos"))

import lmsd
from common import Claims, about, calls_needed, contest, field, in_words, measure, which, write_json
from fit import KILLED
from lmsd import gain
from lmsd.cli.terminal import print_table
from networks import DEAR, NETWORKS, TEST_SEED, test_count, test_problem

BATCH = 4  # trajectories in a call
KNOWN = Path(__file__).with_name("best_known.json")
FIT = Path(__file__).with_name("fit.py")
# name: NFE, image-calls, options, how much above the best known at most
ROWS = {
    "5@10000": (5, 10_000, {}, 1.10),
    "5@20000": (5, 20_000, {"trajectories": 200}, 1.03),
    "8@25000": (8, 25_000, {"trajectories": 120}, 1.10),
    "3-8@60000": ((3, 8), 60_000, {"trajectories": 120}, 1.10),
}
AGAINST = {5: "5@20000", 8: "8@25000"}  # rows that gradient descent, the field and the old library meet
LONG = {"trajectories": 1200, "held_out": 256, "iterations": 1000}
NODE = {"trajectories": 64, "held_out": 24}  # the defaults of the ComfyUI node
NODE_CALLS, FEW_CALLS = 12_000, 3_600  # image-calls
AS_GOOD = (8, 32)  # trajectories of the contests that find where the field is as good
LARGE = 65_536  # elements of the latent that memory is measured with
MEMORY = (40, 160)  # trajectories


def distill(name, nfe, seed, **options):
    problem = NETWORKS[name](BATCH, seed)
    options = {**about(problem), **options}
    return lmsd.distill(problem.model, problem.begin, problem.like, nfe=nfe, progress=False, **options)


def distances(name, schedules):
    """Over the test trajectories."""
    return measure(test_problem(name), schedules, test_count(name))


def same(one, other):
    """Whether two schedules are the same to the last bit, whatever their records say."""
    names = ("process", "sigma_start", "sigma_end", "nodes")
    return all(one.to_dict()[name] == other.to_dict()[name] for name in names)


class Bench:
    def __init__(self, args):
        self.args, self.claims = args, Claims()
        self.known = json.loads(KNOWN.read_text())
        self.table, self.results = [], {"rows": []}
        self.fits = {}  # (network, row, NFE): [(schedule, distance)], by seed
        self.calls = {}  # (network, row): most image-calls

    def best(self, name, nfe):
        """None where no long run has been made."""
        return self.known.get(name, {}).get(str(nfe), {}).get("distance")

    def put(self, section, **result):
        """A result for the file."""
        self.results.setdefault(section, []).append(result)

    def seeds(self, name):
        return range(self.args.seeds or DEAR.get(name, 5))

    def row(self, name, row):
        """Fits with each seed, measured."""
        nfe, budget, options, bar = ROWS[row]
        fits = [distill(name, nfe, s, max_calls=budget // BATCH, **options) for s in self.seeds(name)]
        most = max(found.report["image_calls"] for found in fits)
        self.calls[name, row] = most
        self.claims.check(f"{name}, {row}: image-calls", most, "<=", budget)
        low, high = (nfe, nfe) if isinstance(nfe, int) else nfe
        for n in range(low, high + 1):
            # a budget may leave out the small ones of a family
            schedules = [found.schedules[n] for found in fits if n in found.schedules]
            self.claims.check(f"{name}, {row}: fits that have {n} NFE", len(schedules), ">=", len(fits))
            if not schedules:
                continue
            values = distances(name, schedules)
            self.fits[name, row, n] = list(zip(schedules, values, strict=True))
            middle, worst, known = statistics.median(values), max(values), self.best(name, n)
            cells = [str(n), str(budget), str(most), f"{middle:.4f}", f"{worst:.4f}"]
            cells += [f"{known:.4f}", f"{middle / known:.3f}"] if known else ["", ""]
            self.table.append([*cells, name])
            print("  ".join(cells), name, file=sys.stderr, flush=True)
            result = {"network": name, "row": row, "nfe": n, "budget": budget, "distances": values}
            used = [found.report["image_calls"] for found in fits]
            self.put("rows", **result, image_calls=used, known=known)
            if known:
                self.claims.check(f"{name}, {row}: {n} NFE / best known", middle / known, "<=", bar)

    def adam(self, name, row="5@20000"):
        """What gradient descent through the network makes of the first seed's fit."""
        from adam import refine

        nfe = ROWS[row][0]
        ours, own = self.fits[name, row, nfe][0]
        (refined,) = distances(name, [refine(name, ours)])
        print(f"{name}, {nfe} NFE: ours {own:.4f}, after Adam through the network {refined:.4f}")
        self.put("adam", network=name, nfe=nfe, ours=own, adam=refined)
        self.claims.check(f"{name}, {nfe} NFE: ours / after Adam", own / refined, "<=", 1.03)

    def field(self, name, nfe):
        """The best of the strongest published field on the test trajectories, and where it is as good."""
        ranked = sorted(self.fits[name, AGAINST[nfe], nfe], key=lambda pair: pair[1])
        ours, own = ranked[(len(ranked) - 1) // 2]  # of the median seed
        make = functools.partial(self.test, name)
        test, count = test_problem(name), test_count(name)
        (winner, distance) = contest(make, {nfe: field(test, nfe, "strongest")}, test, count)[nfe][0]
        best = {}
        for more in range(nfe, 3 * nfe + 1):
            found, (here,) = gain.race(
                {more: field(test, more, "strongest")},
                lambda schedules, trajectories: measure(make(trajectories), schedules, trajectories),
                AS_GOOD,
                own=[ours],
            )
            best[more] = found[more][0][1]
            if best[more] <= here:
                break
        needed = calls_needed(best, here)
        told = ours.made_by["handcrafted"][0]
        print(
            f"{name}, {nfe} NFE: strongest published field {distance:.4f} ({which(winner)}), "
            f"{distance / own:.2f} times ours, {own:.4f}; it is as good at "
            + (f"{needed:.1f} NFE" if needed else f"more than {3 * nfe} NFE")
            + f"; the run itself named {in_words(told)}"
        )
        self.put(
            "field",
            **{"network": name, "nfe": nfe, "ours": own, "strongest published field": distance},
            **{"which": which(winner), "as_good": needed, "best": best, "named": told},
        )
        self.claims.check(f"{name}, {nfe} NFE: strongest published field / ours", distance / own, ">=", 1)

    @staticmethod
    def test(name, size):
        return NETWORKS[name](size, TEST_SEED)

    def old(self, name, nfe):
        """Version 0.1.0 at its defaults beside the new fits."""
        fits = self.fits[name, AGAINST[nfe], nfe]
        package = Path(self.args.old).resolve()
        told = {"network": name, "nfe": nfe, "size": 64}
        made = child(told, env={"PYTHONPATH": str(package)})
        if Path(made["package"]) != package / "lmsd":
            raise SystemExit(f"{made['package']} ran in place of {package / 'lmsd'}")
        file = made["schedules"][str(nfe)]
        teacher = file.pop("made_by")["teacher"]
        (distance,) = distances(name, [lmsd.Schedule.from_json(file)])
        image_calls = 64 * (made["report"]["model_calls"] + made["report"]["teacher_calls"])
        own, used = fits[0][1], self.calls[name, AGAINST[nfe]]
        print(
            f"{name}, {nfe} NFE: 0.1.0 {distance:.4f} for {image_calls} image-calls (teacher {teacher}); "
            f"now {own:.4f} for {used}"
        )
        self.put(
            "old", network=name, nfe=nfe, old=distance, old_image_calls=image_calls, new=own, new_calls=used
        )
        self.claims.check(f"{name}, {nfe} NFE: new / 0.1.0", own / distance, "<=", 1)

    def node(self, name):
        """What the ComfyUI node does at its defaults; and with few calls, then more."""
        whole = distill(name, 5, 0, **NODE)
        used = whole.report["image_calls"]
        (distance,) = distances(name, [whole.schedules[5]])
        known = self.best(name, 5)
        cells = ["5", "", str(used), f"{distance:.4f}", ""]
        cells += [f"{known:.4f}", f"{distance / known:.3f}"] if known else ["", ""]
        self.table.append([*cells, f"{name}: ComfyUI node, defaults, 5 steps"])
        self.claims.check(f"{name}: ComfyUI node, defaults, 5 steps: image-calls", used, "<=", NODE_CALLS)
        with tempfile.TemporaryDirectory() as folder:
            options = {**NODE, "checkpoint": str(Path(folder) / "run")}
            few = distill(name, 5, 0, max_calls=FEW_CALLS // BATCH, **options)
            more = distill(name, 5, 0, **options)
        used_few = few.report["image_calls"]
        made = few.schedules[5].made_by
        gained = made["handcrafted"][0]["distance"] / made["distance"]
        what = f"{name}: with {FEW_CALLS} image-calls"
        self.put("node", network=name, image_calls=used, distance=distance, few=used_few, few_gain=gained)
        self.claims.check(f"{what}: image-calls", used_few, "<=", FEW_CALLS)
        self.claims.check(f"{what}: improved", int(made["improved"]), ">=", 1)
        equal = same(more.schedules[5], whole.schedules[5])
        self.claims.check(f"{what}, then without limit: same as unbroken", int(equal), ">=", 1)

    def kill(self, count):
        """Fits for the mixture, killed in the middle of a model call and resumed."""
        told = {"network": "mixture", "nfe": 5}
        whole = child(told)
        expected = lmsd.Schedule.from_json(whole["schedules"]["5"])
        points = random.Random(0).sample(range(1, whole["calls"] + 1), count)
        equal = 0
        for point in points:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = {"checkpoint": str(Path(folder) / "run")}
                child(told | checkpoint | {"kill": point}, status=KILLED)
                resumed = distill("mixture", 5, 0, **checkpoint)
            good = same(resumed.schedules[5], expected)
            equal += good
            if not good:
                print(f"killed at call {point} of {whole['calls']}: another schedule")
        self.put("kill", points=sorted(points), calls=whole["calls"], same=equal)
        self.claims.check(f"killed {count} times and resumed: the same schedule", equal, ">=", count)

    def memory(self):
        """Memory does not grow with the number of trajectories."""
        nfe, held_out, width = 5, 24, 8  # trajectories of a linearisation
        tensor = BATCH * LARGE * 4 / 2**20
        unknowns = 2 * nfe + nfe * (nfe + 1) // 2
        formula = (width // BATCH * (unknowns + 3) + held_out // BATCH + 2 * nfe) * tensor
        told = {"elements": LARGE, "nfe": nfe, "held_out": held_out}
        made = [child(told | {"trajectories": count}) for count in MEMORY]
        for count, one in zip(MEMORY, made, strict=True):
            grown = one["peak"] - one["before"]
            print(
                f"memory, {count} trajectories: {one['peak']:.0f} MiB at most, {grown:.0f} above the start; "
                f"by (unknowns + 3) tensors a batch, held-out ends and history: {formula:.0f}"
            )
            calls = one["report"]["image_calls"]
            self.put(
                "memory",
                trajectories=count,
                image_calls=calls,
                peak=one["peak"],
                grown=grown,
                formula=formula,
            )
        few, many = (one["peak"] for one in made)
        what = f"peak memory with {MEMORY[1]} trajectories / with {MEMORY[0]}"
        self.claims.check(what, many / few, "<=", 1.10)

    def long(self, name, nfe):
        """A fit that is not meant to be cheap, then Adam: the better of both is the best known."""
        from adam import refine

        # half an hour and more for a large network: a second run goes on
        kept = Path(self.args.out).with_name(f"known {name} {nfe}.checkpoint")
        kept.parent.mkdir(parents=True, exist_ok=True)
        found = distill(name, nfe, 100, checkpoint=str(kept), **LONG)
        ours = found.schedules[nfe]
        after = name not in DEAR or (name == "photos" and self.args.adam_photos)
        both = [ours, refine(name, ours)] if after else [ours]
        distance, at = min((d, at) for at, d in enumerate(distances(name, both)))
        how = f"lmsd, {LONG['trajectories']} trajectories, {found.report['image_calls']} image-calls"
        how += ", then Adam through the network" * at
        self.known = json.loads(KNOWN.read_text())  # again: other networks may be measured side by side
        self.known.setdefault(name, {})[str(nfe)] = {"distance": distance, "how": how}
        print(f"{name}, {nfe} NFE: best known {distance:.4f}: {how}", flush=True)
        write_json(KNOWN, self.known)


def child(options, status=0, env=None):
    """A fit in a process of its own: what it prints; it has to exit with `status`."""
    command = [sys.executable, str(FIT), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})
    if done.returncode != status:
        raise SystemExit(f"{FIT.name} exited with {done.returncode}, not {status}:\n{done.stderr}")
    return None if status else json.loads(done.stdout)


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = {"action": argparse.BooleanOptionalAction, "default": True}
    parser.add_argument("--out", default="out/cost.json", help="file (default %(default)s)")
    parser.add_argument("--seeds", type=int, help="fits of each row (default 5; photos 3, emoji 2)")
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--adam", help="gradient descent from the fits of 5@20000", **flag)
    parser.add_argument("--adam-photos", action="store_true", help="for photos too: slow")
    parser.add_argument("--field", help="the strongest published field", **flag)
    parser.add_argument("--node", help="the ComfyUI node's defaults", **flag)
    parser.add_argument("--memory", help="peak memory", **flag)
    parser.add_argument("--kill", type=int, default=10, metavar="N", help="kills (default %(default)s)")
    parser.add_argument("--old", metavar="FOLDER", help="has the package lmsd 0.1.0 in it (make old)")
    parser.add_argument("--long", action="store_true", help="measure best_known.json again, nothing else")
    parser.add_argument("--long-nfe", nargs="+", type=int, default=range(3, 9), metavar="NFE")
    return parser.parse_args()


def main():
    args = options()
    bench = Bench(args)
    started = time.perf_counter()
    if args.long:
        for nfe in args.long_nfe:
            for name in args.networks:
                bench.long(name, nfe)
        return 0
    for name in args.networks:
        for row in args.rows:
            bench.row(name, row)
        gradients = name.startswith("digits") or (name == "photos" and args.adam_photos)
        if args.adam and "5@20000" in args.rows and gradients:
            bench.adam(name)
        for nfe, row in AGAINST.items():
            if row in args.rows and args.field:
                bench.field(name, nfe)
            if row in args.rows and args.old:
                bench.old(name, nfe)
        if args.node:
            bench.node(name)
    if args.kill:
        bench.kill(args.kill)
    if args.memory:
        bench.memory()
    head = ["NFE", "budget", "most used", "median", "worst", "known", "/ known", "network"]
    print_table([head, *bench.table])
    print("budget and most used in image-calls, all included; mean distances on test trajectories")
    print(f"{time.perf_counter() - started:.0f} s")
    write_json(args.out, {"lmsd": lmsd.__version__, **bench.results, "claims": bench.claims.results})
    return bench.claims.finish()


if __name__ == "__main__":
    sys.exit(main())
