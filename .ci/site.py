"""mkdocs' hook: pages from files outside docs/, links as GitHub follows them, generated tables.

Links in the documents lead from file to file of the repository. On the site they lead to that
file's page, or to a copy of the file where it has no page.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for mkdocs' own process, which need not have the package installed

from settings_reference import reference  # noqa: E402

# Pages of the site that lie elsewhere in the repository.
PAGES = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
SETTINGS = "<!-- settings -->"
WORKER = "https://unpkg.com/iframe-worker/shim"  # the theme's; docs/worker.js does the same offline


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to pages of the site, and put the tables of settings in their place."""
    here = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(here, f"docs/{here}"))

    def lead(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if re.match(r"\w+:", target):
            return match[0]
        file = posixpath.normpath(posixpath.join(folder, target))
        uri = _uri(file, config, files)
        return f"]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"

    if SETTINGS in markdown:
        markdown = markdown.replace(SETTINGS, reference())
    return LINK.sub(lead, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Let pages that are opened as files search without loading anything."""
    folder = posixpath.dirname(page.file.dest_uri) or "."
    return output.replace(WORKER, posixpath.relpath("worker.js", folder))


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """The same for pages that are no document, such as 404.html."""
    return output.replace(WORKER, "worker.js")


def _uri(file: str, config: MkDocsConfig, files: Files) -> str:
    """Where a file of the repository is on the site; it is copied there if need be."""
    if file in PAGES:
        return PAGES[file]
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    uri = f"files/{file}"
    if (ROOT / file).is_file() and files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / file)))
    return uri
