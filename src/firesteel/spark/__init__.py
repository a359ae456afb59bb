"""Training in a gang of Spark barrier tasks."""
