"""Pascal-Part."""
