"""Figures, the page of a run, the generated parts of the families' pages."""
