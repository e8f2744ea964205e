"""Measurements: speed beside other libraries, and the claims of the papers. Rows in `results/`, tables from rows."""
