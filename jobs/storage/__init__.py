"""Where a picture's bytes are: in files of their own, or in tar shards."""
