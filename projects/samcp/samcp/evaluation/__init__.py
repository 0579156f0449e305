"""Evaluators: Detectron2's, adapted to RLE masks and label maps, and those that Detectron2 lacks."""

from samcp.evaluation.build import build_evaluator
from samcp.evaluation.results_table import compare_with_oracle, format_results

__all__ = ["build_evaluator", "compare_with_oracle", "format_results"]
