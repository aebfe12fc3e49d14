"""Looks into the wheels and the source distribution that `make wheels` has made, and prints a table of them.

    python mk/check_wheels.py build/wheels     # exits with 1 where one is missing, or not as it should be

Knows nothing of how they were made: the platform of a wheel's name says what must be in it.
"""

import json
import re
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LICENCES = ("LICENSE-MIT", "LICENSE-APACHE")
MOST_BYTES = 8 << 20

# Platform of the name: the library's file, its format, and its machine as that format has it.
WHEELS = {
    "manylinux_2_28_x86_64": ("liblmsd.so", "ELF", 62),
    "manylinux_2_28_aarch64": ("liblmsd.so", "ELF", 183),
    "win_amd64": ("lmsd.dll", "PE", 0x8664),
    "macosx_11_0_arm64": ("liblmsd.dylib", "Mach-O", 0x0100000C),
    "macosx_11_0_x86_64": ("liblmsd.dylib", "Mach-O", 0x01000007),
}
# A crate that is there for one system only, and so tells whose list of crates this is.
ONLY_ON = {"ELF": ("linux-raw-sys", True), "PE": ("windows-sys", True), "Mach-O": ("linux-raw-sys", False)}


def format_and_machine(data: bytes) -> tuple[str, int]:
    if data[:4] == b"\x7fELF":
        return "ELF", struct.unpack_from("<H", data, 18)[0]
    if data[:2] == b"MZ":
        (header,) = struct.unpack_from("<I", data, 0x3C)
        known = data[header : header + 4] == b"PE\0\0"
        return "PE" if known else "DOS", struct.unpack_from("<H", data, header + 4)[0]
    if data[:4] == b"\xcf\xfa\xed\xfe":
        return "Mach-O", struct.unpack_from("<I", data, 4)[0]
    return "unknown", 0


def faults_of_library(names: list[str], archive: zipfile.ZipFile, wanted: tuple[str, str, int]) -> list[str]:
    libraries = [name for name in names if re.search(r"\.(so|dylib|dll|pyd)\b", name)]
    if libraries != [f"lmsd/{wanted[0]}"]:
        return [f"libraries {libraries}"]
    data = archive.read(libraries[0])
    faults = []
    if format_and_machine(data) != wanted[1:]:
        faults.append(f"{libraries[0]} is {format_and_machine(data)}, not {wanted[1:]}")
    if b"lmsd_abi_version" not in data:
        faults.append(f"{libraries[0]} does not export lmsd_abi_version")
    return faults


def faults_of_notes(names: list[str], archive: zipfile.ZipFile, kind: str) -> list[str]:
    """Licences and the list of crates."""
    faults = []
    for licence in LICENCES:
        own = [name for name in names if name.endswith(f".dist-info/licenses/{licence}")]
        if not own or archive.read(own[0]) != (ROOT / licence).read_bytes():
            faults.append(f"{licence} is missing or not the repository's")
    bills = [name for name in names if name.endswith(".dist-info/sboms/lmsd.cdx.json")]
    if not bills:
        return [*faults, "no list of crates"]
    bill = json.loads(archive.read(bills[0]))
    crates = {crate["name"] for crate in bill["components"]}
    crate, there = ONLY_ON[kind]
    if (crate in crates) != there or "rayon" not in crates:
        faults.append("the list of crates is another system's")
    return faults


def check_wheel(path: Path, wanted: tuple[str, str, int]) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        faults = faults_of_library(names, archive, wanted) + faults_of_notes(names, archive, wanted[1])
    if path.stat().st_size > MOST_BYTES:
        faults.append(f"more than {MOST_BYTES} bytes")
    return faults


def check_source(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    needed = {"pyproject.toml", "hatch_build.py", "src/lmsd/__init__.py", *LICENCES}
    needed |= {f"rust/{name}" for name in ("Cargo.toml", "Cargo.lock", "build.rs", "src/lib.rs")}
    faults = [f"no {name}" for name in sorted(needed - names)]
    return faults + [f"built: {name}" for name in sorted(names) if name.endswith((".so", ".dylib", ".dll"))]


def rows_of(folder: Path) -> list[tuple[Path, str, list[str]]]:
    """File, what it is, and its faults; those that are missing and those that should not be there too."""
    rows = []
    for platform, wanted in WHEELS.items():
        name = f"lmsd-*-py3-none-{platform}.whl"
        found = sorted(folder.glob(name)) or [folder / name]
        rows += [(path, f"{wanted[0]}, {wanted[1]}", lambda p, w=wanted: check_wheel(p, w)) for path in found]
    found = sorted(folder.glob("lmsd-*.tar.gz")) or [folder / "lmsd-*.tar.gz"]
    rows += [(path, "source", check_source) for path in found]
    known = {path for path, *_ in rows}
    rows = [(path, kind, check(path) if path.is_file() else ["missing"]) for path, kind, check in rows]
    return rows + [
        (path, "", ["not expected"]) for path in sorted(folder.glob("lmsd-*")) if path not in known
    ]


def main() -> int:
    rows = rows_of(Path(sys.argv[1]))
    for path, kind, faults in rows:
        size = path.stat().st_size / 1e6 if path.is_file() else 0
        print(f"{path.name:46} {size:6.2f} MB  {kind:22} {'; '.join(faults) or 'good'}")
    return int(any(faults for *_, faults in rows))


if __name__ == "__main__":
    sys.exit(main())
