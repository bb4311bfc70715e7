"""The assignment as a kit: a folder with stubs to fill in, tests, questions; and how far one
is.
"""
