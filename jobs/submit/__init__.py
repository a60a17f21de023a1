"""From prompts to jobs: the run folder, its size in time, the text for Slurm, and what follows or steers it."""
