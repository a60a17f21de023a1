"""What must be right before a job is worth submitting."""
