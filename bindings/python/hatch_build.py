"""Puts the library into the wheel and tags it py3-none-<platform>: it is called through ctypes, so any Python
does.

The library is the one in src/lmsd, or else the one that LMSD_LIBRARY names.
"""

import os
import sys
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILE_NAME = {"win32": "lmsd.dll", "darwin": "liblmsd.dylib"}.get(sys.platform, "liblmsd.so")


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
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["force_include"][str(library)] = f"lmsd/{FILE_NAME}"
