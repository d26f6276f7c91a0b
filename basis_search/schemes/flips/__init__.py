"""Discovery by walks on the flip graph, Hensel lifting from GF(2) to the integers, and tables of all formats."""
