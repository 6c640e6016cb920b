"""What is done with a finished model: tables, benchmarks, deployment, export, prediction, figures and reports."""
