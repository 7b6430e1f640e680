"""Self-contained HTML pages of records and experiments, and the folders in which they are shared.

It lays out tables and figures that others make, and computes nothing.
"""

from sinklens.report.ablation import report_of
from sinklens.report.page import PROMPTS, Section, from_record, number, write

__all__ = ["PROMPTS", "Section", "from_record", "number", "report_of", "write"]
