"""How Sphinx builds the documentation: Markdown pages through MyST, in the Furo theme."""

project = "Setpoint"
author = "The Setpoint developers"
project_copyright = "The Setpoint developers"

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# GitHub and Sphinx then agree on what `page.md#some-heading` means
source_suffix = {".md": "markdown"}
# measured tables may stand in files that a page includes
exclude_patterns = ["_*"]

html_theme = "furo"
html_title = "Setpoint"
html_copy_source = False
