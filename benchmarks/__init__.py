"""Measure speed beside other libraries, and test the claims of the papers. `results/` has the rows."""
