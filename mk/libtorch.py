"""Unpacks from wheels what a program needs to build with libtorch and to run on the CPU."""

import argparse
import re
import zipfile
from pathlib import Path

WANTED = re.compile(
    r"torch/include/.*"
    r"|torch/lib/(libtorch|libtorch_cpu|libc10)\.so"
    r"|torch/lib/libgomp[^/]*"
    r"|nvidia/.*/lib/(libcudart|libcupti)\.so[^/]*"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", type=Path, help="folder of the wheels")
    parser.add_argument("to", type=Path, help="folder to unpack to: torch/ and nvidia/ side by side")
    args = parser.parse_args()
    version = None
    for wheel in sorted(args.wheels.glob("*.whl")):
        name, its_version = wheel.name.split("-")[:2]
        if name == "torch":
            version = its_version
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(args.to, [name for name in archive.namelist() if WANTED.fullmatch(name)])
    if version is None:
        raise SystemExit(f"there is no wheel of torch in {args.wheels}")
    (args.to / "torch" / "build-version").write_text(version + "\n")


if __name__ == "__main__":
    main()
