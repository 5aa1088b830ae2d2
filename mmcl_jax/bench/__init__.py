"""Measurements on the user's own hardware, and the usual ways to do things, to measure against: `mmcl bench`."""
