"""Configuration of the documentation site; ``make docs`` builds it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.version import __version__

project = "asr-deploy"
author = "the asr-deploy authors"
html_show_copyright = False
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "index"

# Links such as speed.md#threads need anchors for headings.
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "colon_fence"]
# Indented blocks are commands and their output, not Python.
highlight_language = "text"
# Languages that Pygments does not know, such as Caddy's, are shown as they are.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
# The values of defaults as the code writes them, not as Python prints them.
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"asr-deploy {__version__}"
