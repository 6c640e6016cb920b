"""What tasks that learn without classes share: options, the run, its report. Nearest neighbours are its metric."""
