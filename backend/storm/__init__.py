"""StormService, RoleSet and PodSet: types, the pure planner, and the reconcilers that only list, call it and act."""
