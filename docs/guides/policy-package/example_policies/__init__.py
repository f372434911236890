"""Scheduling policies for ServeTwin, an example of a package of one's own."""
