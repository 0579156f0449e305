"""Commands of ``scripts/``: each module has a ``main`` that takes the parsed arguments.

The scripts parse arguments first and import these modules later, because PyTorch and Detectron2 take seconds to import.
"""
