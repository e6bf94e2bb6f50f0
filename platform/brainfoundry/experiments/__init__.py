"""Studies: grids of runs over Ray Tune; their plan, statistics, tables and figures."""
