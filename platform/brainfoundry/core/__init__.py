"""What every room stands on: errors, files anywhere, random numbers, configuration, progress."""
