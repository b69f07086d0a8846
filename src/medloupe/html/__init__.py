"""Self-contained HTML pages: markup that escapes, one style, one file. Knows nothing of MedLoupe."""
