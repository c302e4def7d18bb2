"""StormService, RoleSet and PodSet: types, the pure planner, and the reconcilers that only list, call it and act."""

from .actions import Action, Create, Delete, Observed, Patch, Plan, Problem, RoleSetPlan
from .planner import plan
from .rolesetplan import plan_role_set

__all__ = ["Action", "Create", "Delete", "Observed", "Patch", "Plan", "Problem", "RoleSetPlan", "plan", "plan_role_set"]
