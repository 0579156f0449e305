"""Clothing Co-Parsing (CCP)."""
