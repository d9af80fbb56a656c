"""The user's model and its running `fit`: the only code that replaces methods of Keras or uses its private names."""
