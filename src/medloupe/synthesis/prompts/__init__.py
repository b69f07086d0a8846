"""How rows are put to a teacher: prompt sets and examples as data files, and the values they become."""

from medloupe.synthesis.prompts.sets import PROMPT_SETS, prompt_set

__all__ = ["PROMPT_SETS", "prompt_set"]
