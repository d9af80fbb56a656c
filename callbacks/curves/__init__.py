"""TensorBoard's curves over the global batch."""
