"""Puts the library into the wheel and tags it py3-none-<platform>: it is called through ctypes, so any Python
does. The platform is read from the library, not from this machine: manylinux with the glibc that it asks for,
macosx with the version that it asks for, win. Beside it goes a list of the crates that it is made of
(CycloneDX, in .dist-info/sboms as PEP 770 has it), where cargo is there.

The library is the one that LMSD_LIBRARY names, or else the one in src/lmsd. In a source distribution there is
neither: cargo builds it from the crate in `rust`. For another machine set CARGO_BUILD_TARGET to its target.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILE_NAME = {"win32": "lmsd.dll", "darwin": "liblmsd.dylib"}.get(sys.platform, "liblmsd.so")
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
PE_MACHINES = {0x8664: "win_amd64", 0xAA64: "win_arm64"}
MACH_MACHINES = {0x01000007: "x86_64", 0x0100000C: "arm64"}
LC_VERSION_MIN_MACOSX, LC_BUILD_VERSION = 0x24, 0x32


def file_and_platform(library: Path) -> tuple[str, str]:
    """The library's name in the wheel, and the wheel's platform, such as manylinux_2_28_x86_64."""
    data = library.read_bytes()
    if data[:4] == b"\x7fELF":
        return "liblmsd.so", elf_platform(data)
    if data[:2] == b"MZ":
        (header,) = struct.unpack_from("<I", data, 0x3C)
        return "lmsd.dll", PE_MACHINES[struct.unpack_from("<H", data, header + 4)[0]]
    if data[:4] == b"\xcf\xfa\xed\xfe":
        return "liblmsd.dylib", mach_platform(data)
    raise ValueError(f"{library} is no library of Linux, Windows or macOS, of 64 bits")


def elf_platform(data: bytes) -> str:
    machine = ELF_MACHINES[struct.unpack_from("<H", data, 18)[0]]
    asked = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", data)
    if not asked:
        return f"linux_{machine}"
    major, minor = max((int(major), int(minor)) for major, minor in asked)
    return f"manylinux_{major}_{max(minor, 17)}_{machine}"


def mach_platform(data: bytes) -> str:
    machine, _, _, commands = struct.unpack_from("<4I", data, 4)
    at = 32
    for _ in range(commands):
        command, size, first, second = struct.unpack_from("<4I", data, at)
        if command in (LC_VERSION_MIN_MACOSX, LC_BUILD_VERSION):
            version = second if command == LC_BUILD_VERSION else first
            major, minor = version >> 16, version >> 8 & 255
            return f"macosx_{major}_{minor if major < 11 else 0}_{MACH_MACHINES[machine]}"
        at += size
    raise ValueError("the library does not say which macOS it is for")


def built(manifest: Path) -> Path:
    """The library, built by cargo."""
    command = ["cargo", "build", "--release", "--lib", "--locked", "--manifest-path", str(manifest)]
    command += ["--message-format", "json-render-diagnostics"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    files = [Path(name) for line in lines for name in json.loads(line).get("filenames", [])]
    (library,) = [file for file in files if re.fullmatch(r"(lib)?lmsd\.(so|dylib|dll)", file.name)]
    return library


def crate_for_source(repository: Path, folder: Path) -> None:
    """What cargo needs to build the library, and nothing of its tests, benchmarks and companions."""
    tables = re.split(r"^(?=\[)", (repository / "Cargo.toml").read_text(), flags=re.MULTILINE)
    left_out = ("[workspace]", "[dev-dependencies]", "[[test]]", "[[bench]]")
    (folder / "Cargo.toml").write_text("".join(table for table in tables if not table.startswith(left_out)))
    for name in ("Cargo.lock", "build.rs", "README.md", "LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copy(repository / name, folder)
    shutil.copytree(repository / "src", folder / "src")
    # Takes out of Cargo.lock what is not needed any more; versions stay.
    command = ["cargo", "metadata", "--format-version", "1", "--manifest-path", str(folder / "Cargo.toml")]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def crates(manifest: Path) -> list[tuple[int, str, str, str]]:
    """Depth, name, version and licence of each line of cargo's tree, the library first."""
    command = ["cargo", "tree", "--locked", "--package", "lmsd", "--edges", "normal", "--no-dedupe"]
    command += ["--prefix", "depth", "--format", "|{p}|{l}", "--manifest-path", str(manifest)]
    if target := os.environ.get("CARGO_BUILD_TARGET"):
        command += ["--target", target]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    parts = [line.split("|") for line in lines if line]
    named = [(depth, *package.split()[:2], licence) for depth, package, licence in parts]
    return [(int(depth), name, version[1:], licence) for depth, name, version, licence in named]


def bill_of_materials(manifest: Path) -> dict:
    """What the library is made of, as CycloneDX 1.6. The same for the same Cargo.lock and platform."""
    lock = (manifest.parent / "Cargo.lock").read_text()
    one = re.compile(r'name = "(\S+)"\nversion = "(\S+)"\nsource = .*\nchecksum = "(\w+)"')
    sums = {f"pkg:cargo/{name}@{version}": checksum for name, version, checksum in one.findall(lock)}
    components, needs, above = {}, {}, []
    for depth, name, version, licence in crates(manifest):
        ref = f"pkg:cargo/{name}@{version}"
        component = {"type": "library", "bom-ref": ref, "name": name, "version": version, "purl": ref}
        component["licenses"] = [{"expression": licence.replace("/", " OR ")}]
        if ref in sums:
            component["hashes"] = [{"alg": "SHA-256", "content": sums[ref]}]
        components[ref], needs[ref] = component, needs.get(ref, set())
        above = [*above[:depth], ref]
        if depth:
            needs[above[depth - 1]].add(ref)
    root = next(iter(components))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": components[root]},
        "components": [components[ref] for ref in sorted(set(components) - {root})],
        "dependencies": [{"ref": ref, "dependsOn": sorted(needs[ref])} for ref in sorted(needs)],
    }


class LibraryHook(BuildHookInterface):
    def initialize(self, version, build_data):
        self.work = Path(tempfile.mkdtemp())
        places = (Path(self.root, "rust", "Cargo.toml"), Path(self.root, "..", "..", "Cargo.toml").resolve())
        manifest = next(filter(Path.is_file, places), None)
        if self.target_name == "sdist":
            self.add_crate(manifest, build_data)
        elif version != "editable":
            self.add_library(manifest, build_data)

    def add_crate(self, manifest, build_data):
        if manifest.parent.name == "rust":  # a source distribution of a source distribution
            build_data["force_include"][str(manifest.parent)] = "rust"
        else:
            crate_for_source(manifest.parent, self.work)
            build_data["force_include"][str(self.work)] = "rust"

    def add_library(self, manifest, build_data):
        own = Path(self.root, "src", "lmsd", FILE_NAME)
        library = Path(os.environ.get("LMSD_LIBRARY") or own)
        if not library.is_file() and manifest and manifest.parent.name == "rust":
            library = built(manifest)
        if not library.is_file():
            raise FileNotFoundError(
                f"there is no {library}: build the library first (cargo build --release) and copy it there, "
                f"or set LMSD_LIBRARY to its path"
            )
        name, platform = file_and_platform(library)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["force_include"][str(library)] = f"lmsd/{name}"
        if manifest and shutil.which("cargo"):
            bill = self.work / "lmsd.cdx.json"
            bill.write_text(json.dumps(bill_of_materials(manifest), indent=1) + "\n")
            build_data["sbom_files"].append(str(bill))

    def finalize(self, version, build_data, artifact_path):
        shutil.rmtree(self.work, ignore_errors=True)
