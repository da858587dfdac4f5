"""Downloads the public image sets by name and verifies every file; run it again to continue.

    python scripts/download_data.py bsd68 cbsd68
    python scripts/download_data.py all --check

data/manifest.tsv says of each file where it is (a path in one commit of a GitHub repository), its size and its
SHA-256. A file gets its name in ROOT/SET/ after its bytes are found to be right, files that are right already are
left alone, and wrong ones are replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from tqdm import tqdm

# the project's packages, wherever the script is started from
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.sets import SETS, bsd68_names, content_hash, root_folder
from options.base import Parser, number
from utils.errors import EXIT_FAILURE, RunError, UsageError, run_script
from utils.files import atomic_write_bytes

MANIFEST = Path(__file__).resolve().parents[1] / "data" / "manifest.tsv"
COLUMNS = ("set", "file", "bytes", "sha256", "repository", "commit", "path")
NAMES = sorted(name for name, named in SETS.items() if named.download)
TIMEOUT = 30  # seconds without a byte
WAITS = (1.0, 2.0, 4.0)  # seconds between the attempts


def main(argv: Sequence[str] | None = None, manifest: Path = MANIFEST) -> int:
    opt = parse(argv)
    root = root_folder(opt.data_root)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root}: is not a folder; name another root with --data-root or DBSN_DATA")
    folders = files_of_sets(opt.sets, read_manifest(manifest))
    states = {
        name: {root / name / e.file: state(root / name / e.file, e) for e in entries}
        for name, entries in folders.items()
    }
    if opt.check:
        for name, files in states.items():
            print(f"{root / name}: {summary(files)}")
        return EXIT_FAILURE if any(s != "right" for files in states.values() for s in files.values()) else 0

    todo: dict[Path, Entry] = {}
    for name, entries in folders.items():
        for entry in entries:
            file = root / name / entry.file
            if states[name][file] == "wrong":
                print(f"{file}: has the wrong size or SHA-256 and is replaced")
            if states[name][file] != "right":
                todo[file] = entry
    for folder in {file.parent for file in todo}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder}: cannot make the folder ({error.strerror}); name another root with --data-root or DBSN_DATA"
            ) from None
    total = sum(e.bytes for entries in folders.values() for e in entries)
    there = total - sum(e.bytes for e in todo.values())
    with tqdm(total=total, initial=there, desc="download", unit="B", unit_scale=True, disable=None) as bar:
        download(todo, opt.base_url, opt.jobs, bar)
    for name, entries in folders.items():
        print(
            f"{root / name}: {len(entries)} files, {sum((root / name / e.file) in todo for e in entries)} of them new"
        )
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="scripts/download_data.py",
        description="Downloads public image sets and verifies them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "sets",
        nargs="+",
        metavar="SET",
        help=f"{', '.join(NAMES)}, or all: every set (bsd432 is taken from bsd500 then)",
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=None,
        help="folder of the named image sets; default: $DBSN_DATA, then datasets/",
    )
    parser.add_argument(
        "--base-url",
        default="https://raw.githubusercontent.com",
        help="where the repositories are; default: %(default)s",
    )
    parser.add_argument("--jobs", type=number(int, 1, 16), default=4, help="parallel connections; default: %(default)s")
    parser.add_argument(
        "--check", action="store_true", help="download nothing; exit code 1 if a file is missing or wrong"
    )
    opt = parser.parse_args(argv)
    for name in opt.sets:
        if name not in (*NAMES, "all"):
            remedy = f"put {SETS[name].get} there by hand" if name in SETS else f"the sets are {', '.join(NAMES)}, all"
            raise UsageError(f"{ascii(name)[1:-1]}: no set that can be downloaded; {remedy}")
    if not is_http(opt.base_url):
        raise UsageError(f"--base-url {ascii(opt.base_url)[1:-1]}: not an http or https address")
    return opt


def is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and url.isascii()
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


# --------------------------------------------------------------------------- what there is to download


@dataclass(frozen=True)
class Entry:
    """A row of the manifest: SET/file here is path in one commit of the GitHub repository owner/name."""

    file: str
    bytes: int
    sha256: str
    repository: str
    commit: str
    path: str


def read_manifest(manifest: Path) -> dict[str, list[Entry]]:
    """The entries of each set.

    Raises RunError for a row that is damaged, or that would lead out of the set's folder or the commit.
    """
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{manifest}: cannot be read ({one_line(error)}); restore it with git") from None
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        raise RunError(
            f"{manifest}: the first line does not name the columns {', '.join(COLUMNS)}; restore it with git"
        )
    sets: dict[str, dict[str, Entry]] = {}
    name = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"  # no separator, no leading dot: neither hidden nor ".."
    for i, line in enumerate(lines[1:], 2):
        cells = dict(zip(COLUMNS, line.split("\t"))) if line.count("\t") == len(COLUMNS) - 1 else {}
        sound = cells and (
            cells["set"] in NAMES
            and re.fullmatch(name, cells["file"])
            and re.fullmatch(r"[1-9][0-9]{0,8}", cells["bytes"])
            and re.fullmatch(r"[0-9a-f]{64}", cells["sha256"])
            and re.fullmatch(f"{name}/{name}", cells["repository"])
            and re.fullmatch(r"[0-9a-f]{40}", cells["commit"])
            and not {"", ".", ".."} & set(cells["path"].split("/"))
        )
        if not sound or cells["file"] in sets.get(cells["set"], {}):
            raise RunError(
                f"{manifest}: line {i} is no row of a manifest, or names a file again or outside its folder; "
                "restore it with git"
            )
        folder = cells.pop("set")
        sets.setdefault(folder, {})[cells["file"]] = Entry(**cells | {"bytes": int(cells["bytes"])})
    return {name: list(entries.values()) for name, entries in sets.items()}


def files_of_sets(names: Sequence[str], manifest: dict[str, list[Entry]]) -> dict[str, list[Entry]]:
    """{folder: entries}, each folder once."""
    folders = [f for name in names for f in (manifest if name == "all" else [SETS[name].folder])]
    wanted = {}
    for folder in folders:
        entries = manifest.get("bsd500" if folder == "bsd432" else folder, [])
        if folder == "bsd432":
            entries = [e for e in entries if Path(e.file).stem not in bsd68_names()]
        if not entries:
            raise RunError(f"the manifest has no files of {folder}; restore data/manifest.tsv with git")
        wanted[folder] = entries
    return wanted


def state(file: Path, entry: Entry) -> str:
    """right, wrong or missing."""
    try:
        right = file.stat().st_size == entry.bytes and content_hash(file) == entry.sha256
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror})") from None
    return "right" if right else "wrong"


def summary(states: dict[Path, str]) -> str:
    """Counts, with the first names of what is not right."""
    text = f"{sum(s == 'right' for s in states.values())} of {len(states)} files are right"
    for problem in ("missing", "wrong"):
        files = [file.name for file, s in states.items() if s == problem]
        if files:
            text += f"; {len(files)} {problem}: {', '.join(files[:5])}{' ..' if len(files) > 5 else ''}"
    return text


# ---------------------------------------------------------------------------- ------------ downloading


def download(wanted: dict[Path, Entry], base_url: str, jobs: int, bar: tqdm) -> None:
    """The first file that fails stops the others; those that are complete stay."""
    opener = urllib.request.build_opener(HttpRedirects)
    stopping = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {
            pool.submit(download_file, opener, file, entry, base_url, stopping): entry for file, entry in wanted.items()
        }
        for future in as_completed(futures):
            future.result()
            bar.update(futures[future].bytes)
    finally:
        stopping.set()
        pool.shutdown(cancel_futures=True)


def download_file(
    opener: urllib.request.OpenerDirector, file: Path, entry: Entry, base_url: str, stopping: threading.Event
) -> None:
    url = f"{base_url.rstrip('/')}/{quote(f'{entry.repository}/{entry.commit}/{entry.path}')}"
    data = fetch(opener, url, entry.bytes, stopping)
    found = hashlib.sha256(data).hexdigest()
    if len(data) != entry.bytes or found != entry.sha256:
        size = f"{len(data)}" if len(data) <= entry.bytes else f"more than {entry.bytes}"
        expected = f"expected {entry.bytes} bytes with SHA-256 {entry.sha256}, found {size} with {found}"
        raise RunError(f"{file}: not written, its source holds other bytes: {expected} ({url})")
    atomic_write_bytes(file, data)


def fetch(opener: urllib.request.OpenerDirector, url: str, size: int, stopping: threading.Event) -> bytes:
    """What is at the URL, of which at most size + 1 bytes are read.

    One more shows that it is too long. Raises RunError when the attempts run out.
    """
    for wait in (*WAITS, 0.0):
        try:
            with opener.open(url, timeout=TIMEOUT) as response:
                data = response.read(size + 1)
                announced = response.headers.get("Content-Length", "")
            if announced.isdecimal() and len(data) < min(int(announced), size + 1):
                raise ConnectionError(f"the connection closed after {len(data)} of {announced} bytes")
            return data
        except (OSError, http.client.HTTPException) as error:
            problem = one_line(error)
            lasting = False
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                lasting = error.code < 500 and error.code not in (408, 429)  # 408: timeout, 429: too many requests
        if lasting or stopping.wait(wait):
            break
    raise RunError(f"cannot download {url}: {problem}; try again later, or name a mirror with --base-url")


class HttpRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would follow to ftp as well."""

    def redirect_request(self, request, response, code, message, headers, url):
        if not is_http(url):
            raise urllib.error.HTTPError(
                request.full_url, code, f"refused to follow to {ascii(url)[1:-1]}", headers, response
            )
        return super().redirect_request(request, response, code, message, headers, url)


def one_line(error: Exception) -> str:
    reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
    return " ".join(str(reason).split()) or type(error).__name__


if __name__ == "__main__":
    run_script(main)
