"""MkDocs hook: the pages at the root of the repository become pages of the site.

MkDocs sees docs/ only. README.md becomes the home page, and CHANGELOG.md, CONTRIBUTING.md and the other
files below become pages beside it. Links that are right in the repository are rewritten, so that every
page is right in both places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CODE_OF_CONDUCT.md": "CODE_OF_CONDUCT.md",
    "SECURITY.md": "SECURITY.md",
}
FILES = ("LICENSE", "NOTICE")
FOLDERS = ("examples",)


def from_root(markdown: str) -> str:
    """Rewrite the links of a page at the root for the site: docs/plan.md becomes plan.md."""
    markdown = re.sub(r"\]\(docs/([^)]*)\)", r"](\1)", markdown)
    return re.sub(r"\]\(README\.md\)", "](index.md)", markdown)


def from_docs(markdown: str) -> str:
    """Rewrite the links of a page in docs/ that lead to the root: ../CHANGELOG.md."""
    return re.sub(r"\]\(\.\./README\.md\)", "](index.md)", markdown).replace("](../", "](")


def _files_of_folders() -> Iterator[Path]:
    """Yield the files of the folders; running the examples leaves a folder of byte code in theirs."""
    for name in FOLDERS:
        yield from (path for path in sorted((ROOT / name).iterdir()) if path.is_file())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the root to those of docs/."""
    for source, target in PAGES.items():
        content = from_root((ROOT / source).read_text("utf-8"))
        files.append(File.generated(config, target, content=content))
    for path in (*(ROOT / name for name in FILES), *_files_of_folders()):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_others: object) -> str:
    """Rewrite the links of a page that lies directly in docs/."""
    return markdown if "/" in page.file.src_uri else from_docs(markdown)
