"""Puts the library into the wheel and tags it py3-none-<platform>: it is called through ctypes, so any Python
does, and manylinux where the library says which glibc it needs.

The library is the one in src/lmsd, or else the one that LMSD_LIBRARY names.
"""

import os
import platform
import re
import sys
import sysconfig
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
