"""From a user's call to flat tensors and back: arguments, outputs, checks, traces that are kept."""
