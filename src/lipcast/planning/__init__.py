"""The planner: where every tensor goes, predicted before anything is loaded; standard library only."""
