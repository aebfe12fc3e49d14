"""`lmsd validate`: are these schedules?"""

import lmsd
from lmsd._files import schedule_files


def run(args) -> int:
    refused = 0
    for file in schedule_files(args.files):
        try:
            schedule = lmsd.Schedule.load(file)
        except lmsd.Error as error:
            refused += 1
            print(f"REFUSED  {error}")
        else:
            print(f"OK       {file}: {schedule.process}, {schedule.nfe} NFE")
    return 1 if refused else 0
