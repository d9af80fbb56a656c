"""Node 0 runs attempts on all nodes, reports failures and restarts."""
