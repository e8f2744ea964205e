"""Programs for maintainers: they write what is derived, and check it."""
