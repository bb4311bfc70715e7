"""Pages that are one file and need no network: HTML, CSS and scripts of this folder, and data."""
