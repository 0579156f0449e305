"""Evaluators: Detectron2's, and what Detectron2 has not."""

from samcp.evaluation.build import build_evaluator
from samcp.evaluation.results_table import format_results

__all__ = ["build_evaluator", "format_results"]
