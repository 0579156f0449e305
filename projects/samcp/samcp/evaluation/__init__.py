"""Evaluators: Detectron2's, and what Detectron2 has not."""

from .build import build_evaluator
from .report import format_results

__all__ = ["build_evaluator", "format_results"]
