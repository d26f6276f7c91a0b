"""StructuredLinear, which replaces dense layers in a model: fit, refit, distil, validate, export, load."""
