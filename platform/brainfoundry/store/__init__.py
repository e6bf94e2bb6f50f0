"""Shard sets: NIfTI volumes as checksummed 32^3 bricks in Arrow files, of which a crop reads only its own."""
