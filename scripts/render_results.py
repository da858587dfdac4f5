"""Renders the tables of measured results: results/*.json -> docs/results.md, and README.md between its markers.

    python scripts/render_results.py             writes both files
    python scripts/render_results.py --check     writes nothing; exit code 1 where one is out of date

Every measured figure comes from a file that `python test.py .. --json results/NAME.json` wrote, every published one
from results/published.json; other files in results/ are left alone. A file is refused where it is not whole, names
folders of one machine, or was measured with other weights than those released. Where that is so for some of its
models, the figures of these are left out: a student can be replaced, and its teacher's figures stay.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules, from wherever this is run

from data.sets import SETS, content_hash
from models.noise import NOISES
from options.base import Parser
from options.records import with_sigma_n
from utils.errors import EXIT_FAILURE, RunError, run_script
from utils.figures import uncertainty_figure, write_figure
from utils.files import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
LEVELS = list(dict.fromkeys(level.name for kind in NOISES.values() for level in kind.levels if not level.whole))
MARKERS = ("<!-- results -->", "<!-- /results -->")
MEASURED = {  # key in a row -> head of its column
    "noisy": "noisy",
    "wavelet": "wavelet*",
    "nlm": "NLM*",
    "bm3d": "BM3D*",
    "mu": "mu",
    "posterior": "posterior",
    "posterior x8": "posterior x8",
    "distilled": "distilled",
    "distilled x8": "distilled x8",
}
PUBLISHED = ("BM3D", "CBM3D", "N2V", "Laine19", "D-BSN", "full")  # those of the published methods that are shown
MISSING = "not measured"
README_COLUMNS = {  # head of a column -> where its figure comes from: the paper, or the key of a measured one
    "noisy": "noisy",
    "paper: D-BSN": ("paper", "D-BSN"),
    "ours: stage 1": "posterior",
    "paper: full": ("paper", "full"),
    "ours: student": "distilled",
    "BM3D": "bm3d",
}
README_LEGEND = """PSNR in dB. The columns "paper" are the published figures. This code measured all the others.
"Ours" are the released weights. They are small: stage 1 has a fifth of the published size, the
students a seventh. One pair of them serves all AWGN levels. They are not told the noise level.
BM3D is told the true one. In colour it is CBM3D."""
README_MG = "The paper does not give its MG covariance, so in the row MG its figures are for other noise."
README_END = """The weights, the commands and more methods are in [docs/results.md](docs/results.md), with
[what has not been measured yet](docs/results.md#not-yet-measured)."""
LEGEND = """PSNR in dB, mean over the images. The protocol is the published one: the noise of each image is
drawn with seed 0, and the output is clamped but not rounded.

- mu is the blind-spot prediction. posterior is the result of stage 1, distilled that of stage 2.
- x8 is the average over the eight flips and rotations.
- An asterisk marks a method that is told the true noise level. For HG and MG this is the root mean
  square over each image. The networks are not told. BM3D in colour is CBM3D.
- Columns in italics are what the paper published.
- The file of a network's run has its `precision`. A CPU with bfloat16 units takes bfloat16 by
  default. It was measured to cost up to 0.02 dB. `--amp off` gives float32."""
NOTES = """The paper's HG noise is taken to be two independent draws, which fits its figures. Its MG covariance
is not published, so that row is for other noise (`--mg-seed`). The measured figures depend on the
code and on the weights named below."""
REAL = """PSNR in dB / SSIM. The noise is the camera's or the microscope's. Where neighbours share it, a
stride was taken. Each file has the strides. Students that end in -refined were trained on the noisy
pictures themselves, without clean ones ([how](ablations.md#refining-on-ones-own-pictures))."""
UNCERTAINTY = """The share of the clean values, in percent, that are within one and within two of the posterior's
standard deviations. Errors that are normal have 68.3 and 95.4.

![share of the clean values within multiples of the standard deviation](uncertainty.png)

`python scripts/render_results.py --figure docs/uncertainty.png` draws it."""
NOT_MEASURED = """- **The published size.** The released weights are small and were trained on a CPU. No network of
  the published size has been trained with this code. The recipes for one GPU are `fast`, the
  paper's own settings are `paper` ([recipes.md](recipes.md)). Their learning rates are scaled from
  small networks. Muon has not been tried at the published width and depth. A run that diverges
  stops with a message.
- **Real GPUs.** The tests that need a GPU pass on an emulated one
  ([tests/fake_cuda.py](../tests/fake_cuda.py)). It finds tensors on the wrong device, but it has
  none of CUDA's kernels or its speed.
- **Several machines.** Two processes on one CPU were tested
  ([performance.md](performance.md#many-processes)).
- **The self-ensemble** of stage 1 at AWGN 15, 50 and Poisson, in gray at 25 too, and of the student
  at Poisson.
- **DND and SIDD**, the benchmarks of camera noise.

On a machine with a GPU:

```
bash scripts/test.sh -m gpu
python scripts/benchmark.py --device cuda --json results/benchmark-gpu.json
FLAVOUR=fast SIGMA=25 bash scripts/gray_awgn.sh      # both stages and the test; also SIGMA=15, SIGMA=50
BLIND=1 bash scripts/gray_awgn.sh                    # one model for levels 5 to 55
FLAVOUR=fast bash scripts/gray_hg.sh
FLAVOUR=fast SIGMA=25 bash scripts/color_awgn.sh
FLAVOUR=fast bash scripts/color_hg.sh
FLAVOUR=fast bash scripts/color_mg.sh
```"""


@dataclass
class Result:
    """What test.py wrote: the file's name in results/ and its contents."""

    name: str
    table: dict

    def cells(self, group: Iterable[dict], figure: str = "psnr") -> dict[str, float]:
        """The mean figure of everything measured that is not a network, and of the networks in the group.

        The group holds records of table["models"].
        """
        suffix = " x8" if self.table["self_ensemble"] else ""
        names = {"noisy": "noisy", **{name: name for name in self.table["baselines"]}}
        for model in group:
            names |= {method + suffix: name for method, name in model["methods"].items()}
        return {
            key: self.table["mean"][name][figure]
            for key, name in names.items()
            if self.table["mean"][name]["psnr"] is not None
        }

    def groups(self) -> list[list[dict]]:
        """Models that share a row.

        A stage-1 model shares it with its student where there is one of each. Else every model is alone.
        """
        models = self.table["models"]
        stages = [model["stage"] for model in models]
        return [models] if len(set(stages)) == len(stages) else [[model] for model in models]


@dataclass
class Section:
    """One table.

    rows: label -> names of the models, "" for the noisy input and the baselines -> column -> (PSNR, SSIM, file in
    results/).
    """

    title: str
    first: str  # head of the first column
    published: dict[str, dict] = field(default_factory=dict)  # label -> method -> PSNR
    rows: dict[str, dict[str, dict[str, tuple]]] = field(default_factory=dict)

    def __post_init__(self):
        self.rows |= {label: {} for label in self.published}

    def add(self, label: str, result: Result) -> None:
        for group in result.groups():
            key = ", ".join(model_name(model["file"]) for model in group)
            row = self.rows.setdefault(label, {}).setdefault(key, {})
            ssim = result.cells(group, "ssim")
            for column, psnr in result.cells(group).items():
                shared = self.rows[label].setdefault("", {}) if column in ("noisy", *result.table["baselines"]) else row
                before = shared.setdefault(column, (psnr, ssim[column], result.name))
                if abs(before[0] - psnr) > 0.005:
                    raise RunError(
                        f"results/{before[2]} and results/{result.name} give {before[0]:.2f} and {psnr:.2f} dB for "
                        f"{column}, {label}: keep one of them"
                    )

    def pair_up(self) -> None:
        """Gives a released stage-1 model and its student one row, where they were measured one by one."""
        for label, groups in self.rows.items():
            for student in [name for name in groups if name.endswith("-full")]:
                teacher = student.removesuffix("-full").rpartition(", ")[2]
                both = f"{teacher}, {teacher}-full"
                parts = [name for name in groups if name in (teacher, student, both)]
                if len(parts) > 1:
                    joined = {column: cell for name in parts for column, cell in groups[name].items()}
                    self.rows[label] = groups = {
                        both if name == parts[0] else name: joined if name == parts[0] else cells
                        for name, cells in groups.items()
                        if name not in parts[1:]
                    }

    def render_narrow(self) -> str:
        """The table of the README.

        It has a row for each noise that was measured, and one for each pair of models where there are several.
        """
        lines = []
        for label, groups in self.rows.items():
            names = [name for name in groups if name]
            for name in names or [""] * bool(groups):
                cells = groups.get("", {}) | groups.get(name, {})
                figures = []
                for source in README_COLUMNS.values():
                    if isinstance(source, tuple):
                        figures.append(self.published.get(label, {}).get(source[1]))
                    else:
                        figures.append(cells[source][0] if source in cells else None)
                first = label if len(names) < 2 else f"{label}, {name}"
                lines.append([first, *("-" if figure is None else f"{figure:.2f}" for figure in figures)])
        return markdown([self.first, *README_COLUMNS], lines)

    def render(self, brief: bool = False, ssim: bool = False) -> str:
        """brief: only rows and columns in which something was measured."""
        measured = {column for groups in self.rows.values() for cells in groups.values() for column in cells}
        columns = [c for c in MEASURED if c in measured or not (brief or " x8" in c)]
        methods = [m for m in PUBLISHED if any(m in row for row in self.published.values())]
        lines = []
        for label, groups in self.rows.items():
            shared = groups.get("", {})
            if brief and not shared:
                continue
            for name in [n for n in groups if n] or [""]:
                cells = shared | groups.get(name, {})
                shown = [show(cells[c], ssim) if c in cells else MISSING for c in columns]
                published = self.published.get(label, {})
                lines.append(
                    [
                        label,
                        name or "-",
                        *shown,
                        *("-" if published.get(m) is None else f"*{published[m]:.2f}*" for m in methods),
                    ]
                )
        return markdown([self.first, "model", *(MEASURED[c] for c in columns), *(f"*{m}*" for m in methods)], lines)


def show(cell: tuple[float, float | None, str], ssim: bool) -> str:
    return f"{cell[0]:.2f}" + (f" / {cell[1]:.4f}" if ssim and cell[1] is not None else "")


def markdown(head: list[str], rows: list[list[str]]) -> str:
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def model_name(file: str) -> str:
    """checkpoints/NAME.safetensors, checkpoints/NAME/last.safetensors -> NAME"""
    path = Path(file)
    return (
        path.stem
        if path.stem not in ("last", "best")
        else path.parent.name + ("" if path.stem == "last" else " (best)")
    )


def noise_label(noise: dict) -> str:
    return NOISES[noise["model"]].label(noise)


def read_results(root: Path) -> list[Result]:
    """The results of test.py under root/results, checked. Raises RunError."""
    results, weights_of = [], {}
    for file in sorted((root / "results").glob("*.json")):
        try:
            table = json.loads(file.read_text())
        except ValueError as error:
            raise RunError(f"results/{file.name} is no JSON ({error}); make it again") from None
        if not isinstance(table, dict) or "protocol" not in table:
            continue  # of another script
        if "models" not in table:
            raise RunError(
                f"results/{file.name} does not tell which weights it measured: make it again with test.py --json"
            )
        if table["skipped"]:
            raise RunError(
                f"results/{file.name} lacks {len(table['skipped'])} images that were skipped: "
                "make it again without --on-bad skip"
            )
        for argument in table["arguments"]:
            if Path(argument).is_absolute():
                raise RunError(
                    f"results/{file.name} was made with the path {argument} of one machine: "
                    "make it again with a named set and $DBSN_DATA"
                )
        replaced = []
        for model in table["models"]:
            weights = root / model["file"]
            released = weights.parent == root / "checkpoints" and weights.is_file()
            if model["sha256"] != (
                content_hash(weights) if released else weights_of.setdefault(model["file"], model["sha256"])
            ):
                replaced.append(model)
                if not released or len(replaced) == len(table["models"]):
                    others = "those now in" if released else "another file there of"
                    raise RunError(
                        f"results/{file.name} was measured with other weights than {others} {model['file']}: "
                        "make it again"
                    )
        for model in replaced:
            table["models"].remove(model)
            del table["seconds_per_image"][model["file"]]
        if table["mean"]:
            results.append(Result(file.name, table))
    return results


def sections_of(results: list[Result], published: dict) -> tuple[list[Section], Section, Section]:
    """The published tables, other images with noise by the published protocol, and really noisy photographs."""
    tables = {
        (t["data"], t["mode"], t["images"]): Section(
            t["title"], "noise", {noise_label(row["noise"]): row["psnr"] for row in t["rows"]}
        )
        for t in published["tables"]
    }
    others, real = Section("Other images", "images, noise"), Section("Real photographs", "images")
    for result in results:
        table = result.table
        images = " ".join(table["data"])
        if table["protocol"] == "none":
            real.add(images, result)
            continue
        found = [
            s
            for (data, mode, count), s in tables.items()
            if images == data and table["mode"] in (None, mode) and len(table["images"]) == count
        ]
        label = noise_label(table["noise"])
        if table["protocol"] == "laine":
            found, label = [], f"{label}, protocol laine, {table['repeats']} draws of each"
        if found:
            found[0].add(label, result)
        else:
            others.add(f"{images}{' in ' + table['mode'] if table['mode'] else ''}, {label}", result)
    for section in (*tables.values(), others, real):
        section.pair_up()
    return list(tables.values()), others, real


def models_table(root: Path, results: list[Result]) -> str:
    models = {model["sha256"]: model for result in results for model in result.table["models"]}
    rows = []
    for model in sorted(models.values(), key=lambda m: (m["stage"], m["file"])):
        facts, name = with_sigma_n(model["training"] or {}), model_name(model["file"])
        cards = [
            c
            for c in sorted((root / "checkpoints").glob("*.md"), key=lambda c: -len(c.stem))
            if name.startswith(c.stem)
        ]
        unknown = "see card" if cards else "not recorded"
        sets = {flag: facts.get(flag) or [] for flag in ("clean", "noisy", "synthetic_noisy")}
        words = {flag: " ".join(names) if len(names) < 4 else f"{len(names)} files" for flag, names in sets.items()}
        images = "; ".join(f"{flag.replace('_', ' ')} {named}" for flag, named in words.items() if named)
        if cards and not SETS.keys() >= {name for names in sets.values() for name in names}:
            images = unknown  # folders of one machine
        levels = [f"{n} " + "..".join(f"{v:g}" for v in dict.fromkeys(facts[n])) for n in LEVELS if facts.get(n)]
        noise = " ".join([facts["noise"], *levels]) if facts.get("noise") else "" if not facts else "-"
        crops = (
            f" of {facts['batch_size']} crops, {facts['patch_size']}x{facts['patch_size']}"
            if "batch_size" in facts
            else ""
        )
        network = ", ".join(
            f"{k} {v}"
            for k, v in model["config"].items()
            if k in ("width", "blocks", "mdc") or (k == "units" and v != "white")
        )
        learned = facts.get("sigma_n") or (f"teacher {model_name(facts['teacher'])}" if facts.get("teacher") else "")
        cells = (images, noise, facts.get("noise_draw"), learned)
        linked = f"[{name}](../checkpoints/{cards[0].name})" if cards else name
        rows.append(
            [
                linked,
                f"`{model['sha256'][:12]}`",
                model["stage"],
                network,
                *(cell or unknown for cell in cells),
                f"{model['step']}{crops}",
            ]
        )
        rows[-1].append(facts.get("trained_on") or unknown)
    head = [
        "checkpoint",
        "SHA-256",
        "stage",
        "network",
        "training images",
        "noise",
        "noise draw",
        "Sigma_n",
        "steps",
        "trained on, for how long",
    ]
    return markdown(head, rows)


def runs_table(results: list[Result]) -> str:
    rows = []
    for result in results:
        t = result.table
        tiled = [model_name(model["file"]) for model in t["models"] if model["tiled"]]
        seconds = ", ".join(f"{model_name(name)} {value:.2f}" for name, value in t["seconds_per_image"].items())
        rows.append(
            [
                f"[{result.name}]({'../results/' + result.name})",
                t["protocol"],
                len(t["images"]),
                t["code"] or "unknown",
                t["torch"],
            ]
        )
        levels = [
            image["noise_level"]
            for image in t["images"]
            if (image.get("noise_level") or {}).get("estimated") and image["noise_level"].get("true")
        ]
        off = (
            f"{sum(abs(level['estimated'] / level['true'] - 1) for level in levels) / len(levels):.1%}"
            if levels
            else "-"
        )
        rows[-1] += [
            f"{t['device']}, {t['threads']} thread{'s' * (t['threads'] > 1)}",
            seconds or "-",
            ", ".join(tiled) or "no",
            off,
        ]
    return markdown(
        ["file", "protocol", "images", "commit", "PyTorch", "device", "seconds per image", "in tiles", "level off by"],
        rows,
    )


def command(result: Result) -> str:
    return shlex.join(["python", "test.py", *result.table["arguments"]])


def render_document(root: Path, results: list[Result], published: dict) -> str:
    tables, others, real = sections_of(results, published)
    parts = [
        "# Results",
        (
            "`python scripts/render_results.py` makes this page from the files in [results](../results). "
            "Do not edit it by hand."
        ),
        LEGEND,
    ]
    parts += [text for section in tables for text in (f"## {section.title}", section.render())]
    parts += [f"Published: {published['citation']}", NOTES]
    if others.rows:
        parts += [f"## {others.title}", others.render(brief=True)]
    parts += [
        f"## {real.title}",
        REAL if real.rows else MISSING,
        real.render(brief=True, ssim=True) if real.rows else "",
    ]
    if shares := shares_of(results):
        table = [[name, *(f"{100 * found[z]:.0f}" for z in ("1", "2"))] for name, found in shares.items()]
        head = ["images, noise, model", "within 1 (68.3)", "within 2 (95.4)"]
        parts += ["## Uncertainty of stage 1", UNCERTAINTY, markdown(head, table)]
    parts += ["## Models", models_table(root, results)]
    parts += ["## Not yet measured", NOT_MEASURED]
    runs = """The seconds depend on what else the machine did, so they do not measure speed. "Level off by" is the mean
error of the noise level that stage 1 found. A dirty commit had changed files."""
    parts += ["## Runs", runs, runs_table(results), "```\n" + "\n".join(command(r) for r in results) + "\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def shares_of(results: list[Result]) -> dict[str, dict[str, float]]:
    """The shares of the true values within multiples of the posterior's standard deviation.

    They are the means over the images of each result with added noise: label -> multiple -> share.
    """
    found = {}
    for result in results:
        table = result.table
        if table["noise"] is None or table["self_ensemble"]:
            continue
        for model in table["models"]:
            images = [(image.get("within") or {}).get(model.get("name")) for image in table["images"]]
            if all(images):
                label = f"{' '.join(table['data'])}, {noise_label(table['noise'])}, {model_name(model['file'])}"
                found[label] = {z: sum(image[z] for image in images) / len(images) for z in images[0]}
    return found


def render_readme(text: str, results: list[Result], published: dict) -> str:
    """The README's text with what is between the markers made anew. RunError where they are missing."""
    start, end = (text.find(marker) for marker in MARKERS)
    if not 0 <= start < end:
        raise RunError(f"README.md: the markers {MARKERS[0]} and {MARKERS[1]} are missing or in the wrong order")
    tables, _, _ = sections_of(results, published)
    parts = [MARKERS[0], README_LEGEND]
    for section in tables:
        measured = any(section.rows.values())
        parts += [f"**{section.title}**", section.render_narrow()] if measured else [f"**{section.title}**: {MISSING}."]
        if section.rows.get("MG"):
            parts.append(README_MG)
    parts.append(README_END)
    return text[:start] + "\n\n".join(parts) + "\n\n" + text[end:]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="scripts/render_results.py", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a file is out of date")
    parser.add_argument(
        "--root",
        type=Path,
        default=ROOT,
        help="folder with results/, docs/, checkpoints/ and README.md; default: this project",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        default=None,
        metavar="FILE",
        help="draw the shares of true values within the uncertainty",
    )
    opt = parser.parse_args(argv)
    try:
        readme = (opt.root / "README.md").read_text()
        published = json.loads((opt.root / "results" / "published.json").read_text())
    except OSError as error:
        raise RunError(f"cannot read {error.filename}: {error.strerror}") from None
    results = read_results(opt.root)
    if opt.figure:
        write_figure(opt.figure, uncertainty_figure(shares_of(results)))
    wanted = {
        "docs/results.md": render_document(opt.root, results, published),
        "README.md": render_readme(readme, results, published),
    }
    outdated = [
        name
        for name, text in wanted.items()
        if not (opt.root / name).is_file() or (opt.root / name).read_text() != text
    ]
    if opt.check:
        print(
            *(f"{name} is out of date: python scripts/render_results.py" for name in outdated),
            sep="\n",
            end="\n" if outdated else "",
        )
        return EXIT_FAILURE if outdated else 0
    for name in outdated:
        atomic_write_text(opt.root / name, wanted[name])
        print(f"{name} written")
    return 0


if __name__ == "__main__":
    run_script(main)
