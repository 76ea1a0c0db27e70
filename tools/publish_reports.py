"""Run analyses and publish their reports: docs/reports/<study>.html, a picture of each, and a page that shows them all.

    python tools/publish_reports.py [NAME ...] [--stored]

NAME is a file of `analyses/` without its ending; without names all of STUDIES are run. Stages that are already stored
in `results/` are reused; `--stored` runs nothing and publishes what is there. A report that is larger than LIMIT, loads
something, or names a path, user or host of this machine is refused. The gallery's numbers are read from the results.
"""

from __future__ import annotations

import argparse
import getpass
import io
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from PIL import Image

from neurosae.report.sections import statements
from neurosae.report.stored import Study, read_study
from neurosae.report.wording import listed
from neurosae.spec.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
RESULTS, REPORTS = ROOT / "results", ROOT / "docs" / "reports"
LIMIT, PICTURE = 2_000_000, 60_000  # bytes of a report, of its picture
STUDIES = {
    "number_agreement": "number-volcano",
    "number_causal": "",
    "occupations": "remove_late-removal",
    "topics": "",
    "sentiment": "next_word-steering",
    "patching": "",
    "attention": "",
    "composition": "",
    "attraction": "",
}
"""Analyses, and the figure that stands for each; where none is named, the first that is wide enough to read."""
HEAD = """# Reports of the shipped studies

Every report below was written by the command beside it, from files of this repository alone, and is one self-contained
page: open it in a browser. The sentences are read from the stored results: the question of the design, the unit and
the correction, and for every test the first two sentences of the report's summary, what was found before what was not.
"""


def main() -> int:
    """Run, check, copy, and write the gallery; 1 if a report is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="files of analyses/; all of the list by default")
    parser.add_argument("--stored", action="store_true", help="publish what is stored, run nothing")
    asked = parser.parse_args()
    REPORTS.mkdir(parents=True, exist_ok=True)
    parts, status = published(), 0
    for name in asked.names or STUDIES:
        if not asked.stored:
            program = Path(sys.executable).with_name("neurosae")
            subprocess.run([program, "run", f"analyses/{name}.yaml"], cwd=ROOT, check=True)
        said = publish(name)
        status |= said is None
        parts |= {name: said} if said else {}
    order = [*(name for name in STUDIES if name in parts), *sorted(set(parts) - set(STUDIES))]
    write_atomic(REPORTS / "README.md", "\n".join([HEAD, *(parts[name] for name in order)]))
    print(REPORTS / "README.md")
    return int(status)


def published() -> dict[str, str]:
    """The parts of the gallery as it stands, by study."""
    page = REPORTS / "README.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    parts = re.split(r"^(?=## \[)", text, flags=re.MULTILINE)[1:]
    return {found[1]: part.rstrip() + "\n" for part in parts if (found := re.search(r"\]\(([\w-]+)\.html\)", part))}


def publish(name: str) -> str | None:
    """Copy one report and its picture; what the gallery says of it, None where something is wrong with it."""
    folder = RESULTS / name
    page = (folder / "report.html").read_text(encoding="utf-8")
    if wrong := faults(page, private=(str(ROOT), str(Path.home()), socket.gethostname(), getpass.getuser())):
        print(f"{name}: not published: {'; '.join(wrong)}")
        return None
    shutil.copyfile(folder / "report.html", REPORTS / f"{name}.html")
    (REPORTS / f"{name}.png").write_bytes(thumbnail(picture(folder, STUDIES.get(name, ""))))
    print(f"{name}: {len(page.encode()):,} bytes")
    return entry(name, read_study(folder))


def faults(page: str, *, private: tuple[str, ...] = ()) -> list[str]:
    """What keeps a page from being published: its size, what it loads, and words that only this machine knows.

    Links to follow are no loads. A word counts where it stands alone, so that a short user name is not found in others.
    """
    found = []
    if (size := len(page.encode())) > LIMIT:
        found.append(f"{size:,} bytes are more than {LIMIT:,}")
    loads = re.findall(
        r"<(?:script|img|image|iframe|link|object|embed|source|use)\b[^>]*?\b(?:src|href)=\"([^\"#][^\"]*)", page
    )
    loads += re.findall(r"url\((?!#)([^)]*)\)|@import\s+([^;]+)", page)
    found += [f"loads {str(load)[:60]}" for load in loads if not str(load).startswith("data:image/")]
    paths = re.findall(r"(?<![\w/.…<:])/(?:home|root|work|tmp|mnt|Users|var|opt)/[\w./-]+", page)
    found += [f"names the path {path}" for path in dict.fromkeys(paths)]
    for word in dict.fromkeys(private):
        if len(word) > 2 and word != "root" and re.search(rf"(?<![\w/-]){re.escape(word)}(?![\w-])", page):
            found.append(f"names '{word}' of this machine")
    return found


def picture(folder: Path, wanted: str) -> Path:
    """The figure that stands for a study."""
    files = sorted((folder / "figures").glob("*.png"))
    named = [file for file in files if file.stem == wanted]
    telling = [file for file in files if file.stem not in ("design-weights", "profile") and "null" not in file.stem]
    return (named or telling or files)[0]


def thumbnail(path: Path) -> bytes:
    """A figure of at most 420 pixels width and PICTURE bytes, in as many colours as fit."""
    image = Image.open(path).convert("RGB")
    for width in (420, 360, 300):
        small = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
        small = small.crop((0, 0, width, min(small.height, 320)))
        buffer = io.BytesIO()
        small.quantize(64).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= PICTURE:
            return buffer.getvalue()
    raise SystemExit(f"{path.name}: no picture of at most {PICTURE:,} bytes can be made of it.")


ADJUSTED = {"maxT": "max-T", "holm": "Holm", "fdr_bh": "false discovery rate"}


def entry(name: str, study: Study) -> str:
    """What the gallery says of one study: question, unit and correction, what was found and what was not, command."""
    description = " ".join(str(study.design.description or "").split())
    rows = study.results[study.results["p_corr"].notna()]
    ways = [word for way, word in ADJUSTED.items() if (rows["p_adjust"] == way).any()]
    families = rows["family"].nunique()
    which = (
        "one family of tests is corrected" if families == 1 else f"each of {families} families of tests is corrected"
    )
    held = f"Units are {int(rows['n_units'].max())} items; {which} by itself ({listed(ways)})."
    said = [s for s in statements(study) if not s.localizer]
    yes, no = ([s for s in said if (s.verdict == "found") == wanted] for wanted in (True, False))
    lines = [f"- {'found' if s in yes else 'not found'}, `{s.test}`: {_first(s.text)}" for s in [*yes, *no]]
    title = str(study.analysis.get("name", name)).replace("_", " ")
    return (
        f"## [{title}]({name}.html)\n\n[![{title}]({name}.png)]({name}.html)\n\n{description} {held}\n\n"
        + "\n".join(lines)
        + f"\n\nCommand: `neurosae run analyses/{name}.yaml`\n"
    )


def _first(text: str) -> str:
    """The first two sentences of a statement."""
    return " ".join(re.split(r"(?<=[.])\s+(?=[A-Z])", text.strip())[:2])


if __name__ == "__main__":
    sys.exit(main())
