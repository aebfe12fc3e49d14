"""`lmsd show`: schedules as tables and pictures."""

import lmsd
from lmsd._files import schedule_files

from . import pictures
from .terminal import number, print_table


def run(args) -> int:
    pictures.check_plot(args.png)
    schedules = [lmsd.Schedule.load(file) for file in schedule_files(args.files)]
    for schedule in schedules:
        print_schedule(schedule)
    if args.png:
        from lmsd.plots import plot_schedule

        pictures.save_plot(plot_schedule(schedules), args.png)
    return 0


def print_schedule(schedule: lmsd.Schedule) -> None:
    print(schedule)
    for what, about in (("made for", schedule.made_for), ("made by", schedule.made_by)):
        plain = {key: value for key, value in about.items() if key not in ("handcrafted", "compared")}
        if plain:
            print(f"{what}: " + ", ".join(f"{key} {value}" for key, value in plain.items()))
    for best in schedule.made_by.get("handcrafted", [])[:3]:
        print(f"handcrafted: {best['solver']}, {best['grid']}, distance {number(best['distance'])}")
    rows = [["node", "sigma", "scale", "weights, newest prediction first"]]
    for n, weights in enumerate(schedule.weights):
        text = " ".join(f"{weight:9.5f}" for weight in weights)
        rows.append([str(n), number(schedule.sigmas[n]), number(schedule.scales[n]), text])
    rows.append(["end", number(schedule.sigma_end), "", ""])
    width = max(len(row[3]) for row in rows)
    print_table([[*row[:3], row[3].ljust(width)] for row in rows])
    print()
