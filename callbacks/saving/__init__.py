"""When a checkpoint is due, who writes it, and which files stay."""
