"""Public releases converted into the layout in which the datasets are registered."""
