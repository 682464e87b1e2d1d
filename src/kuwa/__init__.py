"""Kuwa: one front door for every language model an institution, a lab or one person has."""

__version__ = "0.1.0"
