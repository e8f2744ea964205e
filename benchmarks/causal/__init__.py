"""Two networks whose reasons are known, and the explainers that name them."""
