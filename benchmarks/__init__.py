"""Speed against the bare limit and against other libraries."""
