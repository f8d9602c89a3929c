"""Figures, contact sheets and self-contained HTML pages."""
