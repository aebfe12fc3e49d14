"""Puts the library that LMSD_TORCH_LIBRARY names into the wheel, for any Python on this platform."""

import os
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LibraryHook(BuildHookInterface):
    def initialize(self, version, build_data):
        library = Path(os.environ.get("LMSD_TORCH_LIBRARY", ""))
        if not library.is_file():
            raise FileNotFoundError("LMSD_TORCH_LIBRARY must name the library: make torch-library builds it")
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["force_include"][str(library)] = f"lmsd_torch_2_11/{library.name}"
