"""What mkdocs.yml asks for, so that the site is made of the files that GitHub shows: no text is written twice.

A file keeps its path: `docs/guide.md` is the page `guide.md`, and `benchmarks/README.md`, outside docs/, the page
`benchmarks/README.md`. Notebooks become Markdown with the outputs that they hold; nothing is executed. Links are
written for GitHub. Here those to a page lead to the page; those to a file that the site does not show lead to the
repository where `pyproject.toml` names it ([project.urls] Repository), and are plain text where it does not.
"""

import base64
import json
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/*.png",
    "benchmarks/results/*.md", "benchmarks/results/*/*.md",
    "tutorials/README.md", "tutorials/*.ipynb", "odesteer_tl/assets/MODEL_CARD.md",
)  # fmt: skip
"""Files outside docs/ that are pages of the site, or pictures on one."""
FRONT = {"README.md": "overview.md"}
"""GitHub's front page is a page of the site, whose front page is docs/index.md."""
LINK = re.compile(r"(?<!`)\[(?P<text>[^\]\[]*(?:\[[^\]]*\])?[^\]\[]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
BADGE = re.compile(r"\[!\[[^\]]*\]\(https?:[^)]*\)\]\([^)]*\)\n*")
"""A picture from another server that is a link: reading the site asks no other server for anything."""


def pages() -> dict[str, str]:
    """The page, or the picture, that each file of the repository is: {path in the repository: path in the site}."""
    files = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".png")]
    files += [path for pattern in OUTSIDE for path in ROOT.glob(pattern)]
    found = {path.relative_to(ROOT).as_posix(): "" for path in sorted(files)}
    return {name: name.removeprefix("docs/").replace(".ipynb", ".md") for name in found} | FRONT


def repository() -> str | None:
    """The address of the repository, if pyproject.toml names it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"].get("urls", {}).get("Repository")


def with_site_links(markdown: str, source: str) -> str:
    """The text of the file `source` with links that are right on the site."""
    site, here, address = pages(), posixpath.dirname(source), repository()

    def led(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        file = posixpath.normpath(posixpath.join(here, target))
        if "://" in target or target.startswith("mailto:") or not (ROOT / file).exists():
            return match[0]
        if file in site:
            return f"[{text}]({posixpath.relpath(site[file], posixpath.dirname(site[source]) or '.')}{anchor})"
        return f"[{text}]({address.rstrip('/')}/blob/HEAD/{file}{anchor})" if address else text

    return LINK.sub(led, markdown)


def markdown_of(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with what its cells printed, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(BADGE.sub("", source))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Figure {len(pictures)}, drawn by the cell above]({name})")
            elif "text/html" in data:  # a token map: one line, as Markdown reads an empty line as the end of HTML
                parts.append("".join(data["text/html"]).replace("\n", "&#10;"))
            elif printed := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_config(config: Any) -> Any:
    """Put every notebook under Tutorials (mkdocs calls this)."""
    (tutorials,) = (entry["Tutorials"] for entry in config.nav if "Tutorials" in entry)
    tutorials += [page for name, page in pages().items() if name.endswith(".ipynb")]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand outside docs/ (mkdocs calls this)."""
    from mkdocs.structure.files import File

    for source, target in pages().items():
        if source.startswith("docs/"):
            continue
        if source.endswith(".ipynb"):
            notebook = json.loads((ROOT / source).read_text(encoding="utf-8"))
            text, pictures = markdown_of(notebook, Path(source).stem)
            files.append(File.generated(config, target, content=text))
            for name, content in pictures.items():
                files.append(File.generated(config, posixpath.join(posixpath.dirname(target), name), content=content))
        else:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead the links of a page (mkdocs calls this)."""
    (source,) = (name for name, target in pages().items() if target == page.file.src_uri)
    return with_site_links(markdown, source)
