"""Where a run's numbers go: a spool in its own storage, MLflow when it listens, Ray's metrics."""
