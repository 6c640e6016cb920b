"""Where model, loss and metric meet."""
