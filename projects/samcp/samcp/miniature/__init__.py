"""Small world of drawn scenes, in which the experiments of the paper run on a laptop."""
