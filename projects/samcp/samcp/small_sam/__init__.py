"""Training of the small SAM, model type `lite` of the generator `sam`."""
