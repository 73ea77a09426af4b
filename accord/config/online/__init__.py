"""Settings of learning from one's own samples."""
