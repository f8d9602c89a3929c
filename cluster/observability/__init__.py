"""MLflow runs, Prometheus metrics, log format and progress bars."""
