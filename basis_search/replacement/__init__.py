"""StructuredLinear in place of dense layers: exported, loaded, refitted, distilled, validated."""
