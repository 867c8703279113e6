"""A simulated hospital, and how well findings about it hold against what was done there."""
