"""A real ComfyUI server for tests: starts it beside its checkout, talks to it, stops it.

    with Host(Path("ComfyUI")) as host:
        run = host.run(prompt)                # a workflow in API format
        run.status, run.progress, run.previews, host.images(run)

Nothing is written into the checkout: models, input, output, users and custom_nodes lie in a temporary folder,
which holds links to (or copies of) the packs under test and nothing else that is in their folders' parents.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "comfyui"
PACKS = {
    "digits_pack": ROOT / "tests" / "comfyui" / "digits_pack",
    "comfyui-lmsd": ROOT / "bindings" / "comfyui",
}
EMOJI = ROOT / "examples" / "comfyui_emoji"
ENDS = {
    "execution_success": "success",
    "execution_error": "error",
    "execution_interrupted": "interrupted",
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class HostError(Exception):
    """The server did not do what it was asked to; the message ends with its log."""


class Rejected(HostError):
    """A prompt that the server refused; `error` and `node_errors` are what it said."""

    def __init__(self, answer):
        self.error, self.node_errors = answer.get("error"), answer.get("node_errors", {})
        super().__init__(json.dumps(answer, indent=2))


@dataclass
class Event:
    """One message of the websocket; `seconds` by time.perf_counter, `data` a dict, text or image."""

    seconds: float
    kind: str
    data: dict | str | bytes


@dataclass
class Run:
    """What became of one prompt. Times are seconds since it was queued."""

    prompt_id: str
    status: str  # success, error or interrupted
    seconds: float
    events: list[Event]
    history: dict = field(repr=False)

    @property
    def progress(self) -> list[dict]:
        """value, max and node (an id) of each step, with `seconds`."""
        return [{"seconds": e.seconds, **e.data} for e in self.events if e.kind == "progress"]

    def bar(self, node: str = "sample") -> tuple[int, int]:
        """value and max of its last step; newer hosts tell only some of the steps where these are fast."""
        step = [step for step in self.progress if step["node"] == node][-1]
        return step["value"], step["max"]

    @property
    def previews(self) -> list[Event]:
        """Images (JPEG or PNG bytes) sent while it ran."""
        return [e for e in self.events if e.kind == "preview"]

    @property
    def texts(self) -> list[str]:
        """What nodes wrote under themselves (send_progress_text), without the node's id."""
        return [e.data for e in self.events if e.kind == "text"]

    @property
    def executed(self) -> dict:
        """Node id -> what it told the frontend ("ui")."""
        return {e.data["node"]: e.data.get("output") for e in self.events if e.kind == "executed"}

    @property
    def cached(self) -> list[str]:
        """Ids of nodes that were not run again."""
        return [n for e in self.events if e.kind == "execution_cached" for n in e.data["nodes"]]

    @property
    def error(self) -> dict | None:
        """node_id, node_type, exception_type, exception_message, traceback."""
        return next((e.data for e in self.events if e.kind == "execution_error"), None)


class Host:
    """A server of the checkout `comfyui`, a context.

    `packs`: name in custom_nodes -> folder; those that are missing are left out. `copied`: names of packs
    that are copied instead of linked, as a user's install is. `args`: more of main.py's arguments.
    `previews`: latent2rgb, auto or none. `base` is the temporary folder, with models/ and output/ in it.
    """

    def __init__(
        self,
        comfyui: Path,
        python: str | None = None,
        packs: dict[str, Path] | None = None,
        copied: tuple[str, ...] = ("comfyui-lmsd",),
        args: tuple[str, ...] = (),
        previews: str = "latent2rgb",
        environment: dict[str, str] | None = None,
    ):
        self.comfyui = Path(comfyui).resolve()
        self.python = python or os.environ.get("COMFYUI_PYTHON") or sys.executable
        self.packs = {name: path for name, path in (packs or PACKS).items() if path.is_dir()}
        self.copied, self.args, self.previews = copied, args, previews
        self.environment = environment or {}
        self.base = Path(tempfile.mkdtemp(prefix="lmsd-comfyui-"))
        self.client_id = uuid.uuid4().hex
        self.events: list[Event] = []
        self.arrived = threading.Condition()
        self.process = self.socket = None
        self._queued: dict[str, tuple[int, float]] = {}
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._lay_out()

    # ---- life

    @property
    def version(self) -> str:
        """Of the checkout."""
        text = (self.comfyui / "comfyui_version.py").read_text()
        return re.search(r'__version__ = "(.*)"', text)[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.base, ignore_errors=True)

    def _lay_out(self):
        for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (self.base / name).mkdir()
        for name, path in self.packs.items():
            place = self.base / "custom_nodes" / name
            if name in self.copied:
                shutil.copytree(path, place, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                place.symlink_to(path, target_is_directory=True)

    def _command(self):
        known = (self.comfyui / "comfy" / "cli_args.py").read_text()
        command = [self.python, str(self.comfyui / "main.py"), "--cpu", "--listen", "127.0.0.1"]
        command += ["--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--user-directory", str(self.base / "user"), "--preview-method", self.previews]
        command += ["--temp-directory", str(self.base), "--dont-print-server", "--disable-auto-launch"]
        if '"--database-url"' in known:  # else in the checkout
            command += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"]
        if '"--disable-api-nodes"' in known:
            command += ["--disable-api-nodes"]
        return [*command, *self.args]

    def _environment(self):
        paths = [ROOT / "bindings" / "python" / "src", *frontend(self.comfyui, self.python)]
        if os.environ.get("PYTHONPATH"):
            paths.append(os.environ["PYTHONPATH"])
        own = dict.fromkeys(THREADS, "1") | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        own["PYTHONPYCACHEPREFIX"] = str(CACHE / "pycache")
        given = {name: value for name, value in os.environ.items() if name != "COMFYUI_DIR"}
        return own | given | {"PYTHONPATH": os.pathsep.join(map(str, paths))} | self.environment

    def start(self, timeout: float = 3600) -> None:
        """Starts the server and waits until it answers; HostError where it ends or a pack fails to import."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        with (self.base / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.base,
                env=self._environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                break
            if self.process.poll() is not None:
                raise HostError(f"the server ended with {self.process.returncode}\n{self.log()}")
            if time.monotonic() > deadline:
                raise HostError(f"no answer within {timeout:g} s\n{self.log()}")
            time.sleep(0.1)
        failed = [
            line for line in self.log().splitlines() if re.search(r"\((IMPORT|PRESTARTUP) FAILED\)", line)
        ]
        if failed:
            raise HostError("\n".join([*failed, self.log()]))
        self._listen()

    def stop(self) -> None:
        """Ends the server; what it wrote stays until the context ends."""
        if self.socket:
            self.socket.close()
            self.socket = None
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def log(self) -> str:
        """All that the server printed, without colours."""
        log = self.base / "log.txt"
        return re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace")) if log.exists() else ""

    # ---- requests

    def request(self, path: str, body=None) -> bytes:
        """GET, or POST of `body` as JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with self._direct.open(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str):
        """The JSON at `path`."""
        return json.loads(self.request(path))

    def object_info(self, node: str | None = None) -> dict:
        """What the server says of all nodes, or of one."""
        return self.get("/object_info")[node] if node else self.get("/object_info")

    def queue(self, prompt: dict, **extra_data) -> str:
        """Queues a workflow in API format; its prompt id. Rejected where validation fails."""
        body = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data}
        before = len(self.events), time.perf_counter()
        try:
            answer = json.loads(self.request("/prompt", body))
        except urllib.error.HTTPError as error:
            raise Rejected(json.loads(error.read())) from None
        if answer.get("node_errors"):  # some outputs were fine, others not
            self.request("/queue", {"delete": [answer["prompt_id"]]})
            raise Rejected(answer)
        self._queued[answer["prompt_id"]] = before
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> Run:
        """Waits for the end of a queued prompt. Prompts run one after another."""
        first, queued = self._queued[prompt_id]

        def ending():
            for i in range(first, len(self.events)):
                event = self.events[i]
                if event.kind in ENDS and event.data.get("prompt_id") == prompt_id:
                    return i, event
            return None

        with self.arrived:
            found = self.arrived.wait_for(ending, timeout)
        if not found:
            raise HostError(f"prompt {prompt_id} did not end within {timeout:g} s\n{self.log()}")
        last, end = found
        deadline = time.monotonic() + 10
        while not (history := self.get(f"/history/{prompt_id}")) and time.monotonic() < deadline:
            time.sleep(0.02)
        start = next(
            i
            for i in range(first, last + 1)
            if self.events[i].kind == "execution_start" and self.events[i].data["prompt_id"] == prompt_id
        )
        events = [Event(e.seconds - queued, e.kind, e.data) for e in self.events[start : last + 1]]
        seconds = end.seconds - queued
        return Run(prompt_id, ENDS[end.kind], seconds, events, history.get(prompt_id, {}))

    def run(self, prompt: dict, timeout: float = 600, **extra_data) -> Run:
        """Queues and waits."""
        return self.wait(self.queue(prompt, **extra_data), timeout)

    def until(self, condition, timeout: float = 600) -> Event:
        """The first event from now on for which `condition(event)` holds."""
        first = len(self.events)
        with self.arrived:
            found = self.arrived.wait_for(
                lambda: next((e for e in self.events[first:] if condition(e)), None), timeout
            )
        if not found:
            raise HostError(f"not seen within {timeout:g} s\n{self.log()}")
        return found

    def interrupt(self) -> None:
        """What the frontend's cancel button does."""
        self.request("/interrupt", {})

    def images(self, run: Run) -> list[bytes]:
        """The image files that a run saved, in the order of its nodes."""
        found = []
        for output in run.history.get("outputs", {}).values():
            for image in output.get("images", []):
                query = {name: image[name] for name in ("filename", "subfolder", "type")}
                found.append(self.request("/view?" + urllib.parse.urlencode(query)))
        return found

    # ---- the websocket, read by a thread

    def _listen(self):
        self.socket = _Socket(f"{self.url}/ws?clientId={self.client_id}", self._receive)

    def _receive(self, kind, data):
        with self.arrived:
            self.events.append(Event(time.perf_counter(), kind, data))
            self.arrived.notify_all()


class _Socket:
    """Hands each message to `receive(kind, data)` until closed."""

    def __init__(self, url, receive):
        self.url, self.receive = url, receive
        self.loop = asyncio.new_event_loop()
        self.open = threading.Event()
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()
        if not self.open.wait(30):
            raise HostError("the websocket does not open")

    def close(self):
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(10)

    def _main(self):
        self.task = self.loop.create_task(self._read())
        with contextlib.suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.task)
        self.loop.close()

    async def _read(self):
        import aiohttp  # ComfyUI needs it too; tests that are skipped do not

        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            session.ws_connect(self.url, max_msg_size=0) as socket,
        ):
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    told = json.loads(message.data)
                    if told["type"] == "status":
                        self.open.set()
                    self.receive(told["type"], told.get("data") or {})
                elif message.type == aiohttp.WSMsgType.BINARY:
                    self.receive(*_binary(message.data))


def _binary(data: bytes):
    """(kind, content) of a binary message: event u32, then for images the format u32, for texts the node."""
    event, rest = int.from_bytes(data[:4], "big"), data[4:]
    if event == 1:
        return "preview", rest[4:]
    if event == 3:
        length = int.from_bytes(rest[:4], "big")
        return "text", rest[4 + length :].decode()
    return f"binary {event}", rest


def frontend(comfyui: Path, python: str) -> list[Path]:
    """Folders for PYTHONPATH with the frontend that the checkout asks for; none where it is installed.

    Fetched once with pip into build/comfyui. Where that exact version is not to be had, the newest of its
    series; where there is no index either, whatever is installed.
    """
    pins = re.findall(r"^(comfyui[-_]\S+?)==(\S+)$", (comfyui / "requirements.txt").read_text(), re.M)
    ask = "import importlib.metadata as m, sys; print(*[m.version(n) for n in sys.argv[1:]])"
    command = [python, "-c", ask, *(name for name, _ in pins)]
    installed = subprocess.run(command, capture_output=True, text=True).stdout.split()
    if installed == [version for _, version in pins]:
        return []
    place = CACHE / ("frontend-" + dict(pins)["comfyui-frontend-package"])
    if not place.exists():
        part = place.with_name(f"{place.name}.{os.getpid()}")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        for relation in ("==", "~="):
            shutil.rmtree(part, ignore_errors=True)
            names = [name + relation + version for name, version in pins]
            if not subprocess.run([*install, "--target", part, *names], capture_output=True).returncode:
                part.rename(place)
                break
    return [place] if place.exists() else []
