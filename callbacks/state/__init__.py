"""Everything that training changes: what it is, read at one instant, written and restored."""
