"""Shards behind a URL: byte ranges, retries, lengths and hashes, against a server on this machine that misbehaves."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minigptv2.corpora.sources import toy
from minigptv2.data.config import CorpusShare, DataConfig, Recipe
from minigptv2.data.plan import DataPlan
from minigptv2.errors import ConfigError, DataError, StorageError
from minigptv2.record import Record, Turn
from minigptv2.shards import remote
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.remote import below, is_remote, public_url
from minigptv2.shards.writer import Sample, write_corpus
from tests.audit import audited, sent
from tests.conftest import REPOSITORY

SAMPLES = list(toy.samples("refer", 12, Path(), "val"))


class Server(ThreadingHTTPServer):
    """Serves a folder by ranges; every request whose number is in `faulty` goes wrong as `fault` says."""

    root: Path
    fault = ""
    every = 2
    count = 0
    log: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.count += 1
        faulty = self.server.fault and self.server.count % self.server.every == 0
        file = self.server.root / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        wanted = self.headers.get("Range")
        status, part = 200, data
        if wanted and not (faulty and self.server.fault == "no ranges"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            status, part = 206, data[int(first) : int(last) + 1 if last else None]
        if faulty and self.server.fault == "503":
            self.send_error(503)
            return
        if faulty and self.server.fault == "reset":
            self.connection.close()
            return
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        cut = faulty and self.server.fault in ("cut", "short")
        self.send_header("Content-Length", str(len(part) // 2 if cut and self.server.fault == "short" else len(part)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {int(first)}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(part[: len(part) // 2] if cut else part)
        if cut:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        self.server.log.append(self.requestline)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    write_corpus(SAMPLES, tmp_path / "root" / "toy", "toy", samples_per_shard=5)
    running = Server(("127.0.0.1", 0), Handler)
    running.root, running.log = tmp_path / "root", []
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize("fault", ["", "503", "reset", "cut", "short", "no ranges"])
def test_every_sample_comes_whole_whatever_the_server_does(server: Server, fault: str) -> None:
    server.fault, server.every = fault, 3
    reader = CorpusReader(f"{url(server)}/toy")
    for number, sample in enumerate(SAMPLES):
        assert reader.record(number) == sample.record
        assert reader.image(number) == sample.image
    assert server.count > 2 * len(SAMPLES)


def test_a_recipe_may_read_from_a_url(server: Server) -> None:
    recipe = Recipe(corpora={"toy": CorpusShare(ratio=1)})
    near = DataPlan(recipe, server.root, seed=1)
    far = DataPlan(recipe, url(server), seed=1)
    assert far.fingerprint() == near.fingerprint() and far.samples(0, 40) == near.samples(0, 40)


def test_table_and_index_are_fetched_once(server: Server) -> None:
    for _ in range(2):
        CorpusReader(f"{url(server)}/toy")
    assert sum("GET /toy/index.npy" in line for line in server.log) == 1
    assert sum("GET /toy/manifest.json" in line for line in server.log) == 2


def test_a_server_that_stays_away_stops_the_run_without_blaming_the_data(server: Server) -> None:
    reader = CorpusReader(f"{url(server)}/toy")
    server.fault, server.every = "503", 1
    with pytest.raises(StorageError, match="download failed after 6 attempts"):
        reader.record(0)


def test_a_missing_shard_and_a_changed_one_are_named(server: Server) -> None:
    file = server.root / "toy" / "toy-000001.tar"
    file.write_bytes(file.read_bytes().replace(b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", 1))
    (server.root / "toy" / "toy-000002.tar").unlink()
    reader = CorpusReader(f"{url(server)}/toy")
    with pytest.raises(DataError, match="toy-000001.tar / sample 0.*checksum"):
        reader.image(5)
    with pytest.raises(DataError, match="toy-000002.tar: not found"):
        reader.record(10)


def test_an_index_that_is_not_the_manifests_is_refused(server: Server) -> None:
    file = server.root / "toy" / "index.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="index.npy: does not match the hash in its manifest"):
        CorpusReader(f"{url(server)}/toy")


@pytest.mark.parametrize(
    "place",
    ["pipe:touch x", "pipe://touch x", "file:///etc", "ftp://x/y", "simplecache::http://x/y", "http://x::zip://y"],
)
def test_other_schemes_are_refused_and_nothing_runs(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    monkeypatch.chdir(tmp_path)
    for open_it in (
        lambda: CorpusReader(place),
        lambda: DataPlan(Recipe(corpora={"c": CorpusShare(ratio=1, shards=place)}), tmp_path, seed=1),
        lambda: DataPlan(Recipe(corpora={"c": CorpusShare(ratio=1)}), place, seed=1),
    ):
        with pytest.raises(ConfigError, match="must be a folder or a URL"):
            open_it()
    assert list(tmp_path.iterdir()) == []


def test_a_read_gives_up_before_the_loader_gives_its_worker_up() -> None:
    pauses = remote.FIRST_PAUSE_S * (2 ** (remote.ATTEMPTS - 1) - 1)
    assert remote.ATTEMPTS * remote.TIMEOUT_S + pauses < DataConfig(recipe="").worker_timeout_s


def test_names_below_a_place() -> None:
    assert below("s3://b/x/", "c") == "s3://b/x/c" and below("data", "c") == Path("data/c")
    assert below("data", "https://h/c") == "https://h/c"
    assert below("https://h/c", "/home/x") == below("data", "/home/x") == Path("/home/x")
    assert is_remote("s3://b/x") and not is_remote("data/shards") and not is_remote(Path("/x"))


def test_secrets_of_a_url_are_not_shown() -> None:
    assert public_url("https://me:secret@host:81/a/b?token=secret") == "https://host:81/a/b"


def test_a_remote_corpus_is_sampled_by_turn(server: Server) -> None:
    """Its turn counts are copied with its index, once, and checked against the manifest."""
    turns = [tuple(Turn("language", f"ask {n}", ("yes",)) for n in range(1 + size)) for size in (3, 0, 1, 4)]
    asked = [Sample(f"{n}", Record(one, separate=True)) for n, one in enumerate(turns)]
    write_corpus(asked, server.root / "asked", "asked", samples_per_shard=2)
    recipe = Recipe(corpora={"asked": CorpusShare(ratio=1)})
    near, far = DataPlan(recipe, server.root, seed=1), DataPlan(recipe, url(server), seed=1)
    assert far.samples(0, 24) == near.samples(0, 24) and len(far.units[0]) == 12
    DataPlan(recipe, url(server), seed=1)
    assert sum("GET /asked/turns.npy" in line for line in server.log) == 1


def test_turn_counts_that_are_not_the_manifests_are_refused(server: Server) -> None:
    turns = (Turn("language", "a", ("b",)), Turn("language", "c", ("d",)))
    write_corpus([Sample("0", Record(turns, separate=True))], server.root / "asked", "asked")
    file = server.root / "asked" / "turns.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(DataError, match="asked/turns.npy: does not match the hash in its manifest"):
        CorpusReader(f"{url(server)}/asked")


def test_an_old_remote_corpus_is_refused_by_turn_without_its_password(server: Server) -> None:
    place = f"http://user:secret@127.0.0.1:{server.server_address[1]}"
    old = REPOSITORY / "tests" / "fixtures" / "v0_1" / "train" / "toy_conversation"
    shutil.copytree(old, server.root / "old")
    with pytest.raises(DataError, match="Run `minigptv2 shards index` on a local copy of http://127") as caught:
        DataPlan(Recipe(corpora={"old": CorpusShare(ratio=1)}), place, seed=1)
    assert "secret" not in str(caught.value)
    by_image = Recipe(corpora={"old": CorpusShare(ratio=1, sample_by="image")})
    assert DataPlan(by_image, place, seed=1).length is None


def without_home(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """As a user without a name and without HOME, in a container."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))


def test_a_user_without_a_home_folder_reads_shards_by_url(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_home(monkeypatch, tmp_path)
    near, far = CorpusReader(server.root / "toy"), CorpusReader(f"{url(server)}/toy")
    assert [far.record(n) for n in range(3)] == [near.record(n) for n in range(3)]
    kept = tmp_path / f"minigptv2-{os.getuid()}"
    assert kept.stat().st_mode & 0o777 == 0o700 and len(list(kept.glob("*/manifest.json"))) == 1
    CorpusReader(f"{url(server)}/toy")
    assert sum("GET /toy/index.npy" in line for line in server.log) == 1 and not Path("~").exists()


@pytest.mark.parametrize("home", ["/proc/nowhere", "file", "relative"])
def test_a_home_folder_that_cannot_be_used_is_left_out(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / home) if home == "file" else home)
    assert remote._cache_folder() == tmp_path / f"minigptv2-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert remote._cache_folder() == tmp_path / "cache" / "minigptv2" / "manifests"


@pytest.mark.parametrize("what", ["link", "file", "open to others"])
def test_a_temporary_folder_that_somebody_else_made_is_not_trusted(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_home(monkeypatch, tmp_path)
    place = tmp_path / f"minigptv2-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    if what == "link":
        place.symlink_to(tmp_path / "theirs")
    elif what == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)
    used = remote._cache_folder()
    assert used != place and used.parent == tmp_path and used.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "place",
    [
        "http://user:{}@127.0.0.1:9/x",
        "http://{}@127.0.0.1:9/x",
        "http://127.0.0.1:9/x/{}/y",
        "http://127.0.0.1:9/x?token={}",
        "http://127.0.0.1:9/x#{}",
        "http://{}.example.invalid/x",
        "s3://bucket/{}",
        "s3://{}/x",
    ],
)
@pytest.mark.parametrize("encode", [str, str.upper, lambda text: "".join(f"%{ord(one):02x}" for one in text)])
def test_a_url_with_a_secret_is_refused_before_any_request(
    place: str, encode: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PASS", "hunter2-hunter2")
    address = place.format(encode("hunter2-hunter2"))
    with audited() as events, pytest.raises(ConfigError, match="Nothing was sent") as caught:
        CorpusReader(address)
    assert not sent(events) and encode("hunter2-hunter2") not in str(caught.value)


@pytest.mark.parametrize("what", ["link", "file", "open to others"])
def test_a_cache_that_somebody_else_made_is_not_trusted(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = tmp_path / "cache" / "minigptv2" / "manifests"
    place.parent.mkdir(parents=True)
    if what == "link":
        (tmp_path / "theirs").mkdir()
        place.symlink_to(tmp_path / "theirs")
    elif what == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)
    assert remote._cache_folder() == tmp_path / "home" / ".cache" / "minigptv2" / "manifests"
