"""Pages that are single files and need no network, made of this folder's HTML, CSS and scripts."""
