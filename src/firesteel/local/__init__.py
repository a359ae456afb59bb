"""Training on this machine: processes, no Spark and no Java."""
