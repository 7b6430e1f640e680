"""The command line and the demo: they read arguments, call the library and print.

No number is computed here that the library cannot give.
"""

from sinklens.cli.app import main

__all__ = ["main"]
