"""Runs hostile payloads in one process and reports, for each, what it did: a line of JSON.

`python -m tests.hostile.worker ASSETS FOLDER [NAME ...]`. An audit hook sees every file that Python opens, every
program that is started and every connection. A file opened by a library written in C or Rust is seen by its effects:
the canary beside the folder must not appear in any output, and a named pipe or a device must not hang the command.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from tests.hostile.payload import SECRET, Payload
from tests.hostile.table import PAYLOADS
from tests.memory import peak_mb, restart_peak

TIME_LIMIT_S = 60
"""After which a command is ended. The test asks for less."""
MEMORY_MB = 3072
"""More address space than the limit of the test, which is about memory in use."""
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "subprocess.Popen", "pty.spawn")
_CONNECTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
_REPOSITORY = Path(__file__).parents[2]


class Watch:
    """The audit hook, which is on while a payload runs. Hooks cannot be removed."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        places = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, _REPOSITORY, "/proc/self", "/dev/fd"}
        self._allowed = [os.path.realpath(place) for place in places] + ["/dev/null", "/proc", "/sys", "/usr", "/etc"]
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or threading.current_thread() is not threading.main_thread():
            return
        if event in _STARTS or event in _CONNECTS or event == "pickle.find_class":
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            self._check_open(os.fsdecode(arguments[0]))
        elif event in ("exec", "compile"):
            code = getattr(arguments[0], "co_filename", None) or (arguments[1] if event == "compile" else "")
            if str(self.folder) in str(code):
                self.seen.append(f"{event} {code}")

    def _check_open(self, path: str) -> None:
        place = os.path.realpath(path)
        if not any(
            place == allowed or place.startswith(f"{allowed}/") for allowed in [*self._allowed, str(self.folder)]
        ):
            self.seen.append(f"open {place}")


def run(payload: Payload, assets: Path, watch: Watch) -> dict[str, Any]:
    from minigptv2.cli import main

    with tempfile.TemporaryDirectory() as made:
        place = Path(os.path.realpath(made))
        folder = place / "named"
        shutil.copytree(assets, folder, symlinks=True)
        for file in (folder / "export" / "config.json", folder / "deepspeed" / "config.yaml"):
            file.write_text(file.read_text().replace(str(assets), str(folder)))
        (place / "canary").write_text(SECRET)
        given = payload.make(folder)
        before = snapshot(place)
        os.chdir(folder)
        out, err = io.StringIO(), io.StringIO()
        memory, start = restart_peak(), time.monotonic()
        watch.seen, watch.folder = [], folder
        signal.alarm(TIME_LIMIT_S)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code: int | str = main(given)
        except SystemExit as error:
            code = f"SystemExit {error.code}"
        except BaseException:  # noqa: BLE001  the report holds it, and the test fails
            code = "traceback"
            err.write(traceback.format_exc())
        finally:
            signal.alarm(0)
            watch.folder = None
        seconds, grown = time.monotonic() - start, peak_mb() - memory
        os.chdir("/")
        said = out.getvalue() + err.getvalue()
        return {
            "name": payload.name,
            "code": code,
            "error": err.getvalue()[-1500:],
            "seconds": round(seconds, 2),
            "grown_mb": round(grown),
            "seen": watch.seen,
            "outside": sorted(str(path) for path in snapshot(place) - before if not Path(path).is_relative_to(folder)),
            "sprung": [str(path) for path in place.rglob("sprung*")],
            "leaked": SECRET in said,
            "copied": [str(path) for path in folder.rglob("*") if holds_secret(path)],
        }


def snapshot(place: Path) -> set[str]:
    return {str(path) for path in place.rglob("*")}


def holds_secret(path: Path) -> bool:
    """Whether a regular file of the folder holds the canary: it was copied from outside."""
    return (
        path.is_file()
        and not path.is_symlink()
        and path.stat().st_size < 1 << 20
        and SECRET.encode() in path.read_bytes()
    )


def main() -> None:
    assets, *names = sys.argv[1:]
    import minigptv2.cli.convert
    import minigptv2.convert.deepspeed
    import minigptv2.convert.published
    import minigptv2.predict.predictor  # noqa: F401

    os.environ["STOLEN_TOKEN"] = SECRET
    answers = os.fdopen(os.dup(1), "w")
    watch = Watch()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("the payload took too long")))
    soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (MEMORY_MB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
    for payload in PAYLOADS:
        if not names or payload.name in names:
            answers.write(json.dumps(run(payload, Path(assets), watch)) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
