"""How a run stands, from its own files: counted, shown, watched, told."""
