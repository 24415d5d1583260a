"""Pages: numbers by token as one HTML file, which needs no network."""
