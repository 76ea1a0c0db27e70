"""From a stored study to figures and one HTML file."""
