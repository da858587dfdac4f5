"""Downloading the image sets: only right bytes get a name, whatever the server, the disk or the manifest holds."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from data.sets import SETS, bsd68_names, content_hash, find_images
from scripts import download_data
from scripts.download_data import COLUMNS, MANIFEST, files_of_sets, main, read_manifest, state
from tests.helpers import real_data
from utils.errors import RunError, UsageError

PROJECT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {f"{i:02}.png": bytes([i]) * (1000 + i) for i in range(1, 6)}


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path and counts requests.

    plan: {path: answers in turn}, a status, a (status, headers) or "cut"; afterwards the file.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = {f"/some/sets/{COMMIT}/a%20folder/{name}": data for name, data in FILES.items()}
        self.plan: dict[str, list] = {}
        self.requests: Counter[str] = Counter()

    def path_of(self, name: str) -> str:
        return f"/some/sets/{COMMIT}/a%20folder/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests[self.path] += 1
        answers = self.server.plan.get(self.path)
        answer = answers.pop(0) if answers else 200 if self.path in self.server.files else 404
        status, headers = answer if isinstance(answer, tuple) else (200 if answer == "cut" else answer, {})
        data = self.server.files.get(self.path, b"") if status == 200 else b"an error page"
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if answer == "cut" else data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download_data, "WAITS", (0.01, 0.01))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def row(name: str, data: bytes, **changes: str) -> str:
    cells = dict(
        zip(
            COLUMNS,
            ("set12", name, str(len(data)), hashlib.sha256(data).hexdigest(), "some/sets", COMMIT, f"a folder/{name}"),
        )
    )
    return "\t".join((cells | changes).values())


def write_manifest(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["\t".join(COLUMNS), *rows]) + "\n")
    return path


@pytest.fixture
def get(server, tmp_path):
    """Runs the script's main on a small manifest of set12 and returns its exit code."""
    manifest = write_manifest(tmp_path / "manifest.tsv", *(row(name, data) for name, data in FILES.items()))
    return lambda *argv: main(
        [*(argv or ["set12"]), "--data-root", str(tmp_path / "root"), "--base-url", server.url + "/"], manifest
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "root" / "set12"


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_files_arrive_whole_and_are_found(get, folder):
    assert get("set12", "all") == 0
    assert contents(folder) == FILES
    assert [f.name for f in find_images("set12", folder.parent)] == list(FILES)


def test_right_files_are_skipped_and_wrong_ones_replaced(get, folder, server, capsys):
    folder.mkdir(parents=True)
    (folder / "01.png").write_bytes(FILES["01.png"])
    (folder / "02.png").write_bytes(b"short")
    (folder / "03.png").write_bytes(b"?" * len(FILES["03.png"]))
    assert get() == 0
    assert contents(folder) == FILES
    assert server.requests == Counter(server.path_of(name) for name in FILES if name != "01.png")
    told = [line for line in capsys.readouterr().out.splitlines() if "replaced" in line]
    assert len(told) == 2 and str(folder / "02.png") in told[0] and str(folder / "03.png") in told[1]
    assert get() == 0 and server.requests.total() == 4


@pytest.mark.parametrize(
    "bytes_there", [b"?" * len(FILES["02.png"]), FILES["02.png"] + b"?", FILES["02.png"][:-1], b""]
)
def test_wrong_bytes_get_no_name(bytes_there, get, folder, server):
    server.files[server.path_of("02.png")] = bytes_there
    with pytest.raises(RunError) as caught:
        get()
    message = str(caught.value)
    assert message.startswith(str(folder / "02.png")) and "\n" not in message
    assert hashlib.sha256(FILES["02.png"]).hexdigest() in message and hashlib.sha256(bytes_there).hexdigest() in message
    assert contents(folder).items() <= FILES.items() and "02.png" not in contents(folder)
    assert server.requests[server.path_of("02.png")] == 1


def test_no_more_is_read_than_the_manifest_says(get, folder, server):
    server.files[server.path_of("02.png")] = FILES["02.png"] + b"?" * 10**7
    with pytest.raises(RunError, match=f"found more than {len(FILES['02.png'])} with"):
        get()


def test_passing_failures_are_tried_again(get, folder, server):
    server.plan = {
        server.path_of("01.png"): [503, "cut"],
        server.path_of("02.png"): [429],
        server.path_of("03.png"): ["cut"],
    }
    assert get() == 0
    assert contents(folder) == FILES
    assert [server.requests[server.path_of(name)] for name in FILES] == [3, 2, 2, 1, 1]


@pytest.mark.parametrize(("answer", "requests", "said"), [(404, 1, "404"), (500, 3, "500"), ("cut", 3, "closed after")])
def test_lasting_failures_name_the_address(answer, requests, said, get, folder, server):
    server.plan[server.path_of("05.png")] = [answer] * 9
    with pytest.raises(RunError) as caught:
        get()
    message = str(caught.value)
    assert server.url + server.path_of("05.png") in message and said in message and "\n" not in message
    assert server.requests[server.path_of("05.png")] == requests and "05.png" not in contents(folder)


def test_no_server(get, server, tmp_path):
    server.server_close()
    with pytest.raises(RunError, match=r"cannot download http://127\.0\.0\.1:.*: .*refused"):
        get()


def test_a_redirect_is_followed_to_http_only(get, folder, server, tmp_path):
    server.plan[server.path_of("01.png")] = [(302, {"Location": server.url + "/moved"})]
    server.files["/moved"] = FILES["01.png"]
    assert get() == 0
    (tmp_path / "local").write_bytes(FILES["01.png"])
    for target in ((tmp_path / "local").as_uri(), "ftp://127.0.0.1/local", "data:,x"):
        (folder / "01.png").unlink()
        server.plan[server.path_of("01.png")] = [(302, {"Location": target})]
        with pytest.raises(RunError, match="302"):
            get()
        assert "01.png" not in contents(folder)
        get()


def test_check(get, folder, server, capsys):
    assert get("set12", "--check") == 1
    assert not folder.exists() and "5 missing: 01.png" in capsys.readouterr().out
    get()
    assert get("set12", "--check") == 0
    (folder / "04.png").write_bytes(b"?" * len(FILES["04.png"]))
    (folder / "05.png").unlink()
    before = contents(folder), server.requests.total()
    assert get("set12", "--check") == 1
    assert "3 of 5 files are right; 1 missing: 05.png; 1 wrong: 04.png" in capsys.readouterr().out
    assert (contents(folder), server.requests.total()) == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["set13"], "the sets are bsd432, bsd500, bsd68"),
        (["div2k"], "DIV2K training images"),
        (["set12", "--base-url", "ftp://host"], "--base-url ftp://host"),
        (["set12", "--base-url", "http://["], "--base-url"),
        (["set12", "--data-root", "{tmp}/manifest.tsv"], "is not a folder"),
    ],
)
def test_wrong_use(argv, said, server, tmp_path):
    manifest = write_manifest(tmp_path / "manifest.tsv", row("01.png", b"1"))
    with pytest.raises(UsageError) as caught:
        main([a.replace("{tmp}", str(tmp_path)) for a in ["--base-url", server.url, *argv]], manifest)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../01.png"},
        {"file": ".."},
        {"file": ".01.png"},
        {"file": "/etc/01.png"},
        {"file": "a\\01.png"},
        {"file": ""},
        {"file": "02.png"},  # a second time
        {"set": "../set12"},
        {"set": "div2k"},
        {"path": "a/../../b.png"},
        {"path": "/b.png"},
        {"repository": "../sets"},
        {"repository": "some"},
        {"commit": "main"},
        {"sha256": "0"},
        {"bytes": "-1"},
        {"bytes": "many"},
        {"path": "a\tb"},
    ],
)
def test_manifest_that_leads_astray(changes, tmp_path):
    manifest = write_manifest(tmp_path / "m.tsv", row("02.png", b"2"), row("01.png", b"1", **changes))
    with pytest.raises(RunError, match=r"m\.tsv: line 3"):
        main(["set12", "--data-root", str(tmp_path / "root")], manifest)
    assert not (tmp_path / "root").exists()


def test_manifest_that_is_none(tmp_path):
    (tmp_path / "m.tsv").write_text("nothing\n")
    for name in ("m.tsv", "absent.tsv"):
        with pytest.raises(RunError, match=name):
            main(["set12"], tmp_path / name)
    with pytest.raises(RunError, match="no files of kodak24"):
        main(["kodak24"], write_manifest(tmp_path / "m.tsv", row("01.png", b"1")))


def test_as_a_script_from_another_folder(server, tmp_path):
    """Exit codes and the line on stderr; the project's own manifest."""
    run = lambda *argv: subprocess.run(  # noqa: E731
        [sys.executable, PROJECT / "scripts" / "download_data.py", *argv],
        cwd=tmp_path,
        env=os.environ | {"DBSN_DATA": "here"},
        capture_output=True,
        text=True,
    )
    unknown, check = run("set13"), run("set12", "--check")
    assert unknown.returncode == 2 and unknown.stderr.startswith("error: set13") and unknown.stderr.count("\n") == 1
    assert check.returncode == 1 and "here/set12: 0 of 12" in check.stdout and not check.stderr


# ------------------------------------------------------------------------------ the project's manifest


def test_manifest_of_the_project():
    manifest = read_manifest(MANIFEST)
    counts = {
        "bsd500": 500,
        "bsd68": 68,
        "cbsd68": 68,
        "cc15": 30,
        "fmd24": 48,
        "general100": 100,
        "t91": 91,
        "kodak24": 24,
        "mcmaster": 18,
        "polyu": 200,
        "set12": 12,
    }
    assert {name: len(entries) for name, entries in manifest.items()} == counts
    assert files_of_sets(["all"], manifest).keys() == counts.keys()
    for name in ("cc15", "fmd24"):
        assert files_of_sets([f"{name}_clean", name], manifest).keys() == {name}
        halves = [
            {e.file for e in manifest[name] if Path(e.file).match(SETS[s].pattern)} for s in (name, f"{name}_clean")
        ]
        assert len(halves[0]) == len(halves[1]) == int(name[-2:]) and not halves[0] & halves[1]


def test_bsd432_is_bsd500_without_bsd68():
    sets = files_of_sets(["bsd432", "bsd500", "cbsd68"], read_manifest(MANIFEST))
    names = {name: {Path(e.file).stem for e in entries} for name, entries in sets.items()}
    assert len(names["bsd432"]) == 432 and names["bsd500"] - names["bsd432"] == bsd68_names() == names["cbsd68"]


def test_bsd432_is_found_in_bsd500(tmp_path):
    (tmp_path / "bsd500").mkdir()
    for e in read_manifest(MANIFEST)["bsd500"]:
        (tmp_path / "bsd500" / e.file).touch()
    assert len(find_images("bsd432", tmp_path)) == 432 and len(find_images("bsd500", tmp_path)) == 500
    (tmp_path / "bsd432").mkdir()
    (tmp_path / "bsd432" / "1.jpg").touch()
    assert find_images("bsd432", tmp_path) == [tmp_path / "bsd432" / "1.jpg"]  # its own folder goes first


def test_absent_sets_name_the_command(tmp_path):
    for name in ("bsd68", "bsd432", "polyu_clean"):
        with pytest.raises(UsageError, match=f"python scripts/download_data.py {name} --data-root {tmp_path}, or"):
            find_images(name, tmp_path)


@pytest.mark.parametrize("name", ["bsd432", "bsd68", "cbsd68", "set12", "cc15", "fmd24"])
def test_real_files_match(name):
    root = real_data(name)
    entries = files_of_sets([name], read_manifest(MANIFEST))[name]
    assert {e.file for e in entries} == {f.name for f in (root / name).iterdir()}
    for entry in (entries[0], entries[len(entries) // 2], entries[-1]):
        assert (
            content_hash(root / name / entry.file) == entry.sha256 and state(root / name / entry.file, entry) == "right"
        )
