"""Measurements of tfjoint beside its peers; `make bench`."""
