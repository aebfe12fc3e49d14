"""The pack in a fake ComfyUI (`fake_comfy`), and ways to run its nodes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: threads only wait here

import importlib.util  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import fake_comfy  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

PACK = Path(__file__).resolve().parents[1]
sys.path.append(str(PACK.parent / "python" / "tests"))  # full_disk

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The pack's own __init__.py is no package of tests: pytest would import it, outside any host."""
    for item in items:
        for node in item.listchain():
            if isinstance(node, pytest.Package) and node.path == PACK:
                node.setup = lambda: None


@pytest.fixture
def host(monkeypatch, tmp_path, request):
    """A fresh host. Parameter: what its interrupt is a kind of."""
    return fake_comfy.install(monkeypatch, tmp_path / "host", getattr(request, "param", Exception))


class Pack:
    """The pack as the host imports it: from its folder, under a name made of the folder's path."""

    def __init__(self, folder=PACK):
        self.name = str(folder).replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(
            self.name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        self.module = sys.modules[self.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)

    def submodule(self, name):
        """One of its modules."""
        return sys.modules[f"{self.name}.{name}"]

    def inputs(self, node):
        """All inputs of a node: name to (type, options)."""
        declared = self.module.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
        return {
            name: (kind[0], kind[1] if len(kind) > 1 else {})
            for group in ("required", "optional")
            for name, kind in declared.get(group, {}).items()
        }

    def run(self, node, **inputs):
        """A node's outputs, with its defaults where no input is given, as the host runs it."""
        declared = self.inputs(node)
        required = self.module.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"]
        filled = {name: declared[name][1]["default"] for name in required if name not in inputs}
        assert set(inputs) <= {*declared, "node_id"}
        for name, value in {**filled, **inputs}.items():
            if name in declared and isinstance(declared[name][0], list):
                assert value in declared[name][0], f"{name}: not in the list"
        cls = self.module.NODE_CLASS_MAPPINGS[node]
        with torch.inference_mode():
            return getattr(cls(), cls.FUNCTION)(**filled, **inputs)

    def forget(self):
        for name in [name for name in sys.modules if name.split(".")[0] == self.name]:
            del sys.modules[name]


@pytest.fixture
def load_pack(host):
    """Imports the pack, again each time, into this host."""
    loaded = []

    def load(folder=PACK):
        loaded.append(Pack(folder))
        return loaded[-1]

    yield load
    for pack in loaded:
        pack.forget()


@pytest.fixture
def pack(load_pack):
    return load_pack()


def pytest_make_parametrize_id(config, val, argname):
    """Interrupts by the kind of their exception."""
    return val.__name__ if isinstance(val, type) else None
