"""Names of regions by a frozen dual encoder: Prompt I without training (METHOD 8; paper 3.1, Table 6, "CLIP")."""

from samcp.modeling.naming.base import NAMES, Namer
from samcp.modeling.naming.build import build_namer

__all__ = ["NAMES", "Namer", "build_namer"]
