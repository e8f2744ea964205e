"""Why our models fail tests that the control passes: suite, pattern of the test's name, reason as the page gives it.

A reason is a property of models that show evidence, or of what the suite can see of them. Anything else is a defect to
mend. A pattern that matches no failure makes `tools/peer_tests` fail, so that the table does not outlive its causes.
"""

REASONS: tuple[tuple[str, str, str], ...] = ()
