"""What a recipe needs before anything is downloaded: tokens, parameters, FLOPs, memory, steps.

The model is built at its real size on the meta device, where tensors have shapes and no numbers.
"""

from medloupe.recipes.plan.plan import Plan, StagePlan, make_plan

__all__ = ["Plan", "StagePlan", "make_plan"]
