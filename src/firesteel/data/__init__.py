"""From what the user has to tensors: which columns (`columns`), from where (`source`, `frame`), in memory (`shard`)."""
