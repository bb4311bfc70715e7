"""Pages that are one file and need no network: HTML, CSS and scripts from this folder, data as
JSON.
"""
