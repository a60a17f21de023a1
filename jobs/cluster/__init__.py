"""What a site has, and what its queue and the run's processes say of who is at work."""
