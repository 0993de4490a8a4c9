"""Refuses a site that fetches anything from elsewhere when it is looked at."""

import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

# Scripts, pictures, frames and style sheets. Links that one follows are no fetches.
TAG = re.compile(r"<(?:script|img|iframe|source|video|link)\b[^>]*>")
ADDRESS = re.compile(r"""\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
NO_FETCH = re.compile(r"""\brel=["']?(?:canonical|alternate|next|prev)\b""")
IN_STYLE = re.compile(r"""(?:url\(|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")


def fetched_by_page(text: str) -> list[str]:
    """Addresses elsewhere that a browser fetches for a page of HTML."""
    tags = [tag for tag in TAG.findall(text) if not NO_FETCH.search(tag)]
    found = [address for tag in tags for address in ADDRESS.findall(tag)]
    styles = "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    return found + fetched_by_style(styles)


def fetched_by_style(text: str) -> list[str]:
    """Addresses elsewhere that a browser fetches for a style sheet."""
    return IN_STYLE.findall(text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The search of pages that are opened as files takes the copy of a script here."""
    config.extra["polyfills"] = ["assets/iframe-worker/shim.js"]
    return config


def on_post_build(config: MkDocsConfig) -> None:
    """Reads all pages and style sheets."""
    for path in sorted(pathlib.Path(config.site_dir).rglob("*")):
        readers = {".html": fetched_by_page, ".css": fetched_by_style}
        reader = readers.get(path.suffix)
        if reader and (found := reader(path.read_text())):
            raise PluginError(f"{path.name} fetches {', '.join(sorted(set(found)))}")
