"""Methods that make weights smaller."""
