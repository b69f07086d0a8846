"""One HTML file that shows how good a model is: nothing outside it is loaded."""

from medloupe.evaluate.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
