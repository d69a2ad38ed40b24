"""Makes a site of documents that are written to be read in the repository.

`README.md` becomes the home page, and every link that leads out of `docs/` a page of the site that shows the file, so
that the equations of a system link to the code that computes them, also where there is no network.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".cff": "yaml", ".sh": "bash"}


def on_files(files: Files, config: Any) -> Files:
    """Add the home page and the pages of linked files; a linked Markdown file may link to more."""
    pages = {"index.md": _moved((ROOT / "README.md").read_text(), "README.md", "index.md")}
    queue = [("docs/" + file.src_uri, file.content_string) for file in files.documentation_pages()]
    queue.append(("README.md", (ROOT / "README.md").read_text()))
    while queue:
        source, text = queue.pop()
        for link in _LINK.findall(text):
            target = _target(source, link)
            page = None if target is None else _page(target)
            if page is None or page in pages:
                continue
            content = _shown(target)
            pages[page] = _moved(content, target, page)
            if target.endswith(".md"):
                queue.append((target, content))
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links of a document out of `docs/` lead to the pages made above."""
    uri = page.file.src_uri
    return markdown if page.file.generated_by else _moved(markdown, f"docs/{uri}", uri)


def _target(source: str, link: str) -> str | None:
    """The path in the repository that a link leads to; None if it leaves the repository or leads nowhere."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _page(target: str) -> str | None:
    """The page of the site that stands for a path, None for what mkdocs copies anyway."""
    if target == "README.md":
        return "index.md"
    if target.startswith("docs/"):
        return None
    return f"source/{target.removesuffix('.md')}.md"


def _moved(text: str, source: str, page: str) -> str:
    """The links of a text that lay at `source` and is shown as `page`."""

    def lead(match: re.Match[str]) -> str:
        target = _target(source, match[1])
        if target is None:
            return match[1]
        place = _page(target) or target.removeprefix("docs/")
        return posixpath.relpath(place, posixpath.dirname(page) or ".")

    return _LINK.sub(lead, text)


def _shown(target: str) -> str:
    """A file of the repository as Markdown."""
    path = ROOT / target
    if path.is_dir():
        readme = path / "README.md"
        if readme.is_file():
            return readme.read_text()
        names = sorted(file.relative_to(ROOT).as_posix() for file in path.iterdir())
        return f"# {target}\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    if path.suffix == ".md":
        return path.read_text()
    return f"# {target}\n\n~~~~{_LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}\n~~~~\n"
