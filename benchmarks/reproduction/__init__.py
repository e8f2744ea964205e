"""The claims of the two papers: studies that put them to the test, rules that judge them, and the report."""
