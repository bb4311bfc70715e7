"""Experiments: recipes and the ladder they form, count-model anchors, paired statistics, reports."""
