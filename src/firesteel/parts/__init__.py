"""Networks that lie in parts on several workers."""
