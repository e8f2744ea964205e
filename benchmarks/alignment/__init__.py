"""Check where the cells of maps lie by experiments, and measure what aligned heat maps gain."""
