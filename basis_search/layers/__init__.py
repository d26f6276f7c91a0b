"""The dense layers to replace: one layer, a collection on disk, and capture from a running model."""
