"""An evaluation in the file forms of other toolkits, so that their tables and viewers read it."""

from medloupe.evaluate.export.forms import FORMS, export_log

__all__ = ["FORMS", "export_log"]
