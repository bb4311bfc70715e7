"""Experiments: recipes and the ladder they form, trials and their records, paired statistics,
reports.
"""
