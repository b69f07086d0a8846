"""Every table and figure of the four papers: what it says, and how it is asked again."""

from medloupe.reproduce.papers.index import PAPERS, Asked, find

__all__ = ["PAPERS", "Asked", "find"]
