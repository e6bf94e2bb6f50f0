"""Figures and self-contained pages made from what `cohorts` knows."""
