"""Whether a run is what its plan says, picture by picture."""
