"""The site: Sphinx, furo, MyST; the course's chapters are executed while it is built. `make docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(HERE))

# What chapters and examples run under, in kernels of their own: no network, no progress bars on pages.
os.environ.update(PLOTLY_RENDERER="sphinx_gallery", TQDM_DISABLE="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])

from sinklens.version import __version__  # noqa: E402

project = "sinklens"
author = "the sinklens developers"
copyright = author
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "figures", "made"]
exclude_patterns = ["*.py", "_ext", "_build", "**/__pycache__"]
nitpick_ignore: list[tuple[str, str]] = []

myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
nb_custom_formats = {".py": ["notebooks.read", {}]}
# NB=off builds the pages without executing chapters; CI and `make docs` execute every cell.
nb_execution_mode = os.environ.get("NB", "force")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "error"  # a warning in a cell fails the build
nb_merge_streams = True

default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = "sinklens"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b3c6f", "color-brand-content": "#0b3c6f"},
    "dark_css_variables": {"color-brand-primary": "#8cc4f5", "color-brand-content": "#8cc4f5"},
}
