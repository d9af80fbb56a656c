"""What all recipes share: flags, distribution, data order, and what a run prints."""
