"""Puts the library into the wheel and tags it py3-none-<platform>: it is called through ctypes, so any Python
does, and manylinux where the library says which glibc it needs. Beside it goes a list of the crates that it
is made of (CycloneDX, in .dist-info/sboms as PEP 770 has it), where cargo and the repository are there.

The library is the one in src/lmsd, or else the one that LMSD_LIBRARY names.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILE_NAME = {"win32": "lmsd.dll", "darwin": "liblmsd.dylib"}.get(sys.platform, "liblmsd.so")


def platform_tag(library: Path) -> str:
    """manylinux_2_28_x86_64, if the library asks for no newer glibc; else the machine's own."""
    asked = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", library.read_bytes())
    if sys.platform == "linux" and asked:
        major, minor = max((int(major), int(minor)) for major, minor in asked)
        return f"manylinux_{major}_{max(minor, 17)}_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def crates(manifest: Path) -> list[tuple[int, str, str, str]]:
    """Depth, name, version and licence of each line of cargo's tree, the library first."""
    command = ["cargo", "tree", "--locked", "--package", "lmsd", "--edges", "normal", "--no-dedupe"]
    command += ["--prefix", "depth", "--format", "|{p}|{l}", "--manifest-path", str(manifest)]
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
        if version == "editable":
            return
        own = Path(self.root, "src", "lmsd", FILE_NAME)
        library = own if own.is_file() else Path(os.environ.get("LMSD_LIBRARY", own))
        if not library.is_file():
            raise FileNotFoundError(
                f"there is no {library}: build the library first (cargo build --release) and copy it there, "
                f"or set LMSD_LIBRARY to its path"
            )
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(library)}"
        build_data["force_include"][str(library)] = f"lmsd/{FILE_NAME}"
        manifest = Path(self.root, "..", "..", "Cargo.toml").resolve()
        if manifest.is_file() and shutil.which("cargo"):
            self.bill = Path(tempfile.mkdtemp(), "lmsd.cdx.json")
            self.bill.write_text(json.dumps(bill_of_materials(manifest), indent=1) + "\n")
            build_data["sbom_files"].append(str(self.bill))

    def finalize(self, version, build_data, artifact_path):
        if bill := getattr(self, "bill", None):
            shutil.rmtree(bill.parent)
