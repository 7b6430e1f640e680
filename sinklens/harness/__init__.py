"""sinklens as a model of lm-evaluation-harness: its requests are scored and continued here, also under edits.

It needs the extra `evals`. Tasks, metrics and their statistics are the harness's; numbers come from `decoding`.
"""

from importlib.util import find_spec

if find_spec("lm_eval") is None:
    raise ImportError("sinklens.harness needs lm-evaluation-harness: pip install 'sinklens[evals]'")

from sinklens.harness.model import SinklensLM

__all__ = ["SinklensLM"]
