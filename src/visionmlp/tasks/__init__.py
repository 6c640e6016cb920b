"""One folder a task: configuration, data, loss and metrics, run, prediction, figures."""
