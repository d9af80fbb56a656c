"""The processes of one node: an agent, its keeper and the ranks."""
